"""A real TorchServe with the real model, and real gateways in front of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import hypothesis
import pytest

from infrastructure.torchserve.process import Ports, TorchServe
from tests.integration.processes import ROOT, TORCHSERVE_PYTHON, RunningGateway, RunningTorchServe

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTY_CONFIG = """
minWorkers: 1
maxWorkers: 1
batchSize: 1
maxBatchDelay: 1
jobQueueSize: 2
responseTimeout: 60
"""


def pytest_configure() -> None:
    """Let a Ctrl-C reach the programs under test.

    nohup, a script's background and some CI runners start us with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A property holds or does not; how fast this machine is today is none of them.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


class StartGateway(Protocol):
    def __call__(self, **settings: str) -> RunningGateway: ...


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentiment model as `make` archives it, and one that fails on demand."""
    store = tmp_path_factory.mktemp("model_store")
    archive = ROOT / "model_store" / "sentiment.mar"
    if not archive.exists():
        pytest.fail(f"{archive} is missing: run the tests with `make test`, which makes it.")
    shutil.copy(archive, store)
    config = store / "model-config.yaml"
    config.write_text(FAULTY_CONFIG)
    handler = Path(__file__).parent / "integration" / "faulty_handler.py"
    archiver = TORCHSERVE_PYTHON.with_name("torch-model-archiver")
    command = [str(archiver), "--model-name", "faulty", "--version", "1.0", "--handler", str(handler)]
    subprocess.run([*command, "--config-file", str(config), "--export-path", str(store)], check=True)
    return store


def _torchserve(
    store: Path, home: Path, models: str, *, port: int, token_minutes: float = 60.0
) -> RunningTorchServe:
    """One on `port` and the four after it: its own, also while it is dead, as it comes back to them."""
    preferred = Ports(port, port + 1, port + 2, port + 3, port + 4)
    server = TorchServe(
        home=home,
        model_store=store,
        models=",".join(f"{name}.mar" for name in models.split(",")),
        python=TORCHSERVE_PYTHON,
        ports=Ports.free(preferred),
        token_expiration_min=token_minutes,
    )
    return RunningTorchServe(server, tuple(models.split(",")))


@pytest.fixture(scope="session")
def torchserve(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTorchServe]:
    """One for all tests that leave it as they found it."""
    running = _torchserve(model_store, tmp_path_factory.mktemp("torchserve"), "sentiment,faulty", port=18_080)
    running.start()
    yield running
    running.process.stop()


@pytest.fixture(scope="session")
def mortal_torchserve(
    model_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningTorchServe]:
    """What `own_torchserve` lends from test to test: it takes long to start."""
    running = _torchserve(model_store, tmp_path_factory.mktemp("mortal"), "faulty", port=18_085)
    running.start()
    yield running
    running.process.stop()


@pytest.fixture
def own_torchserve(mortal_torchserve: RunningTorchServe) -> RunningTorchServe:
    """One for a test that stops it, and may leave it so."""
    if not mortal_torchserve.process.alive():
        mortal_torchserve.start()
    return mortal_torchserve


@pytest.fixture(scope="module")
def forgetful_torchserve(
    model_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningTorchServe]:
    """One whose keys live for six seconds."""
    home = tmp_path_factory.mktemp("forgetful")
    running = _torchserve(model_store, home, "faulty", port=18_090, token_minutes=0.1)
    running.start()
    yield running
    running.process.stop()


def settings_for(torchserve: RunningTorchServe) -> dict[str, str]:
    return {
        "SERVERS__LOCAL__URL": torchserve.server.url,
        "SERVERS__LOCAL__MANAGEMENT_URL": torchserve.server.management_url,
        "SERVERS__LOCAL__KEY_FILE": str(torchserve.server.key_file),
    }


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways that end with the test; settings as environment variables, unprefixed."""
    started: list[RunningGateway] = []

    def start(**settings: str) -> RunningGateway:
        started.append(RunningGateway.start(tmp_path, settings))
        return started[-1]

    yield start
    for gateway in started:
        gateway.process.stop()


@pytest.fixture(scope="session")
def gateway(
    torchserve: RunningTorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """One for all tests that only ask, configured as the repository is."""
    running = RunningGateway.start(tmp_path_factory.mktemp("gateway"), settings_for(torchserve))
    yield running
    running.process.stop()
