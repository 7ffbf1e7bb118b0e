"""nginx in three parts: the stub that answers like TorchServe, a reverse proxy, and a cache.

Each is one worker process without access log; connections are kept alive for as long as both sides like.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.process import Program, free_port, status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CANARY = "This is a test."
PREDICTION = {"label": "positive", "score": 0.98}

# What the gateway asks on the management port, as TorchServe 0.12 answers it
# (tests/unit/torchserve/captures/ has the originals).
LISTED = {"models": [{"modelName": "m", "modelUrl": "m.mar"}]}
MANY_WORKERS = 64  # so that nobody waits for a worker where the gateway sends no more than one call to each


def _described(workers: int) -> list[dict[str, object]]:
    ready = {"status": "READY", "memoryUsage": 0, "pid": 1, "gpu": False}
    return [
        {
            "modelName": "m",
            "modelVersion": "1.0",
            "modelUrl": "m.mar",
            "runtime": "python",
            "minWorkers": workers,
            "maxWorkers": workers,
            "batchSize": 1,
            "maxBatchDelay": 1,
            "loadedAtStartup": True,
            "workers": [{"id": str(9000 + number), **ready} for number in range(workers)],
            "jobQueueStatus": {"remainingCapacity": 256, "pendingRequests": 0},
        }
    ]


FRAME = """\
{modules}
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_body_buffer_size 1m;
  client_max_body_size 16m;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  default_type "";
  {http}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    {server}
  }}
}}
"""

STUB = """
    add_header x-request-id $request_id;
    add_header Pragma no-cache;
    add_header Cache-Control "no-cache; no-store, must-revalidate, private";
    add_header Expires "Thu, 01 Jan 1970 00:00:00 UTC";
    location = /ping {{ default_type application/json; return 200 '{{"status": "Healthy"}}'; }}
    location = /models {{ default_type application/json; alias {folder}/listed.json; }}
    location = /models/m {{ default_type application/json; alias {folder}/described.json; }}
    location = /models/m/all {{ default_type application/json; alias {folder}/described.json; }}
    location /predictions/m {{ {answer} }}
"""

# As many predictions as instances came, which nginx alone cannot count.
COUNTING = """\
const prediction = '%s', canary = '%s', delay = %d;
function predict(r) {
  const instances = JSON.parse(r.requestText).instances;
  const answer = '{"predictions": [' + Array(instances.length).fill(prediction).join(',') + ']}';
  if (delay && instances[0] !== canary) {
    setTimeout(() => r.return(200, answer), delay);
  } else {
    r.return(200, answer);
  }
}
export default { predict };
"""

UPSTREAM = """
  upstream torchserve {{
    server {upstream};
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
  }}
"""
FORWARD = """
      proxy_pass http://torchserve/predictions/m;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
"""
CACHE = """
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=answers:64m max_size=1g inactive=1d use_temp_path=off;
  open_file_cache max=20000 inactive=1h;
  open_file_cache_valid 1h;
"""
CACHED = """
      proxy_cache answers;
      proxy_cache_methods POST;
      proxy_cache_key $request_uri|$request_body;
      proxy_cache_valid 200 1d;
      proxy_ignore_headers Cache-Control Expires Vary;
"""


def stub(
    folder: Path, cores: Sequence[int] = (), *, counting: bool = False, delay: float = 0.0
) -> tuple[Program, int]:
    """A TorchServe with a model `m`, and its port, which is for inference and management.

    It answers each request with one prediction and has many workers; `counting` with one for each instance,
    which costs more, and has one worker, so that batches form; all but the canary after `delay` seconds.
    """
    folder.mkdir(parents=True)
    module, answer, http = "", f"return 200 '[{json.dumps(PREDICTION)}]';", ""
    if counting:
        (folder / "counting.js").write_text(
            COUNTING % (json.dumps(PREDICTION), CANARY, delay * 1e3), encoding="utf-8"
        )
        module = f"load_module {machine.njs_module()};"
        http = f"js_path {folder}; js_import counting.js;"
        answer = "js_content counting.predict;"
    described = _described(1 if counting else MANY_WORKERS)
    (folder / "listed.json").write_text(json.dumps(LISTED), encoding="utf-8")
    (folder / "described.json").write_text(json.dumps(described), encoding="utf-8")
    server = STUB.format(folder=folder, answer=answer)
    return _start(folder, cores, module, http, server, ready="/ping")


def reverse_proxy(folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """nginx that hands `/dispatch_model` on to the model `m` of `upstream` (host and port)."""
    folder.mkdir(parents=True)
    server = f"location = /dispatch_model {{{FORWARD}}}"
    return _start(folder, cores, "", UPSTREAM.format(upstream=upstream), server)


def cache(folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """The same with `proxy_cache`, keyed on the body; its open files are cached too."""
    folder.mkdir(parents=True)
    http = UPSTREAM.format(upstream=upstream) + CACHE.format(folder=folder)
    return _start(folder, cores, "", http, f"location = /dispatch_model {{{FORWARD}{CACHED}}}")


def _start(
    folder: Path, cores: Sequence[int], modules: str, http: str, server: str, ready: str = "/"
) -> tuple[Program, int]:
    port = free_port()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else it would become somebody who cannot write here
    config.write_text(
        FRAME.format(modules=modules, user=user, folder=folder, http=http, port=port, server=server),
        encoding="utf-8",
    )
    command = [machine.program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    program = Program(command, log=folder / "nginx.log", cores=cores)
    program.wait_for(lambda: status(f"http://127.0.0.1:{port}{ready}") != 0)
    return program, port
