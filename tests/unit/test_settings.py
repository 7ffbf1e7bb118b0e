from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from pydantic import BaseModel, SecretStr

from bootstrap.pipeline import policy_names
from bootstrap.settings import (
    AdmissionSettings,
    BatchingSettings,
    CachingSettings,
    ModelSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    SettingsError,
    load,
)
from interface.cli import describe, main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings in the environment."""
    for variable in [name for name in os.environ if name.startswith("DISPATCHER_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    named: dict[str, type[BaseModel]] = {"servers": ServerSettings, "models": ModelSettings}
    for name, field in table.model_fields.items():
        inner = table_in(field.annotation if prefix else named.get(name, field.annotation))
        below = f"{prefix}{name}." + ("<name>." if name in named and not prefix else "")
        if inner is not None:
            yield from keys(inner, below)
        else:
            yield prefix + name


def table_in(annotation: Any) -> type[BaseModel] | None:
    """`Table` of `Table` and of `Table | None`."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()

    documented = set(re.findall(r"`((?:servers|models|http|cache|redis|jobs|health|log)\.[a-z_.<>]+)`", text))
    own = {key for key in keys(Settings) if not key.startswith("defaults.")}  # those of `models.<name>`
    assert documented == own


def test_every_documented_default_is_the_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()

    rows = re.findall(
        r"^\| `(models\.<name>(?:\.[a-z]+)?|[a-z]+)\.([a-z_]+)` \| `([^`]+)` \|", text, re.MULTILINE
    )
    tables = {
        "models.<name>": ModelSettings(),
        "models.<name>.caching": CachingSettings(),
        "models.<name>.admission": AdmissionSettings(),
        "models.<name>.batching": BatchingSettings(),
        "redis": RedisSettings(url=SecretStr("redis://a")),
        **{n: getattr(Settings(), n) for n in ("http", "cache", "health", "jobs", "log")},
    }
    assert len(rows) == 36
    for table, key, default in rows:
        assert str(getattr(tables[table], key)).lower() == default.strip('"'), key


def test_the_repositorys_own_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", str(ROOT / "dispatcher.toml"))

    settings = load()

    assert list(settings.models) == ["sentiment"]
    assert str(settings.servers["local"].url) == "http://127.0.0.1:8080/"


def test_without_a_file_the_server_is_on_this_machine() -> None:
    server = load().servers["local"]

    assert (str(server.url), str(server.management_url)) == (
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8081/",
    )


def test_the_environment_overrides_one_key_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dispatcher.toml").write_text('[servers.a]\nurl = "http://a:1"\nkey_file = "k"\n')
    monkeypatch.setenv("DISPATCHER_SERVERS__A__URL", "http://b:2")

    server = load().servers["a"]

    assert (str(server.url), server.key_file) == ("http://b:2/", Path("k"))


def test_a_models_own_keys_win_over_the_defaults(folder: Path) -> None:
    (folder / "dispatcher.toml").write_text(
        "[defaults]\ntimeout = 7.0\nattempt_timeout = 3.0\n[models.m]\ntimeout = 9.0\n"
    )

    settings = load()

    assert (settings.model("m").timeout, settings.model("m").attempt_timeout) == (9.0, 3.0)
    assert settings.model("other").timeout == 7.0


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("DISPATCHER_SERVERS__LOCAL__URL", "ftp://a", "servers.local.url (DISPATCHER_SERVERS__LOCAL__URL)"),
        ("DISPATCHER_SERVERS__LOCAL__URL", "http://a/path", "protocol, host and port only"),
        ("DISPATCHER_SERVERS__LOCAL__URL", "http://user:pw@a", "protocol, host and port only"),
        ("DISPATCHER_SERVERS", '{"not a name": {"url": "http://a"}}', "servers.not a name"),
        ("DISPATCHER_SERVERS", "{", 'field "servers"'),
        ("DISPATCHER_HEALTH__INTERVAL", "0", "Input should be greater than 0"),
        ("DISPATCHER_HEALTH__INTERVAL", "nan", "health.interval"),
        ("DISPATCHER_HEALTH__NONSENSE", "1", "Extra inputs are not permitted"),
        ("dispatcher_nonsense", "1", "dispatcher_nonsense: no such setting"),
        ("DISPATCHER_NONSENSE", "1", "DISPATCHER_NONSENSE: no such setting. Known: DISPATCHER_CACHE"),
        ("DISPATCHER_CONFIG", "nowhere.toml", "names nowhere.toml, which is not a file"),
        (
            "DISPATCHER_REDIS__URL",
            "http://:secret@a",
            "redis.url (DISPATCHER_REDIS__URL): Value error, should",
        ),
        ("DISPATCHER_LOG__FORMAT", "xml", "'auto', 'json' or 'console'"),
        ("DISPATCHER_JOBS__REDIS", "redis://:secret#1@a", "jobs.redis (DISPATCHER_JOBS__REDIS): Value error"),
        ("DISPATCHER_JOBS__BROKER", "amqp://b:secret[1@a/", "is no URL: user and password should have %23"),
        ("DISPATCHER_JOBS__WEBHOOK_SECRETS", "whsec_secret", 'JSON there, like ["a", "b"]'),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as error:
        load()

    assert told in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "policies"), [("true", "Caching(ttl=3600)"), ('{"ttl": 9}', "Caching(ttl=9)")]
)
def test_a_policy_is_a_switch_or_a_table(monkeypatch: pytest.MonkeyPatch, value: str, policies: str) -> None:
    monkeypatch.setenv("DISPATCHER_DEFAULTS__CACHING", value)
    monkeypatch.setenv("DISPATCHER_DEFAULTS__BATCHING", "false")

    described = "".join(policy_names(load(), "m"))

    assert policies in described
    assert "Batching" not in described


def test_what_rests_on_determinism_is_left_out_of_a_model_that_has_none(folder: Path) -> None:
    (folder / "dispatcher.toml").write_text("[models.dice]\ndeterministic = false\ncaching = true\n")

    described = "".join(policy_names(load(), "dice"))

    assert "Caching" not in described
    assert "Coalescing" not in described
    assert "Batching" in described


def test_a_file_that_is_not_toml_is_refused(folder: Path) -> None:
    (folder / "dispatcher.toml").write_text("servers = [")

    with pytest.raises(SettingsError, match=r"dispatcher\.toml"):
        load()


def test_check_prints_what_would_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "dispatcher.toml").write_text('[servers.a]\nurl = "http://a:1"\n[models.m]\ntimeout = 9.0\n')

    assert main(["check"]) == 0

    printed = capsys.readouterr().out
    assert printed == describe(load())
    assert "a: http://a:1/ (management: none: versions and workers stay unknown)" in printed
    assert "m:\n  Deadline(default=9, cap=120)\n  Coalescing()\n  Admission(max_in_flight=2000, " in printed


def test_check_of_a_bad_configuration_says_why_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_HEALTH__INTERVAL", "-1")

    assert main(["check"]) == 2
    assert "health.interval" in capsys.readouterr().err
