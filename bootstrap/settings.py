"""What is deployed: `dispatcher.toml`, overridden by environment variables `DISPATCHER_…`.

Everything is validated when the gateway starts; docs/configuration.md is the reference.
"""

from __future__ import annotations

import base64
import os
from ipaddress import IPv4Network, IPv6Network  # noqa: TC003  (pydantic needs them)
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings import SettingsError as NotJson

if TYPE_CHECKING:
    from pydantic_settings import PydanticBaseSettingsSource

PREFIX = "DISPATCHER_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
DEFAULT_CONFIG = "dispatcher.toml"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
ServerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


def _no_path(url: HttpUrl) -> HttpUrl:
    if (url.path or "/") != "/" or url.query or url.fragment or url.username or url.password:
        message = "should be protocol, host and port only"
        raise ValueError(message)
    return url


ServerUrl = Annotated[HttpUrl, AfterValidator(_no_path)]


def _of_redis(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        message = "should start with redis://, rediss:// or unix://"
        raise ValueError(message)
    return _readable(url)


def _of_broker(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("amqp://", "amqps://")):
        message = "should start with amqp:// or amqps://"
        raise ValueError(message)
    return _readable(url)


def _readable(url: SecretStr) -> SecretStr:
    """Refused here, because whoever stumbles over it later tells a part of the password."""
    try:
        _ = urlsplit(url.get_secret_value()).port
    except ValueError:
        message = "is no URL: user and password should have %23 for #, %2F for /, %3F for ?, and so on"
        raise ValueError(message) from None
    return url


def _webhook_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:  # noqa: PLR2004  Standard Webhooks 1.0
        message = "should be whsec_ and 24 to 64 random bytes in base64"
        raise ValueError(message)
    return secret


WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Table):
    """One TorchServe."""

    url: ServerUrl = Field(description="Inference address: protocol, host and port.")
    management_url: ServerUrl | None = Field(
        None,
        description="Management address. Without it the gateway cannot see versions and workers, "
        "and serves only the models named in the configuration.",
    )
    key_file: Path | None = Field(
        None,
        description="TorchServe's `key_file.json`; leave it out where token authorization is off.",
    )


class CachingSettings(_Table):
    """Whether answers are remembered, by instance."""

    ttl: Seconds = Field(3_600.0, description="How long an answer is remembered.")


class AdmissionSettings(_Table):
    """How much is let in at once; in instances."""

    max_in_flight: int = Field(2_000, ge=1, description="Upper bound of the adaptive limit.")
    max_waiting: int = Field(5_000, ge=0, description="How many wait at most, for each of both priorities.")
    bulk_share: float = Field(
        0.1, gt=0, lt=1, description="Part of what is let in that bulk work may always have."
    )


class BatchingSettings(_Table):
    """How requests travel together."""

    max_size: int = Field(32, ge=1, le=10_000, description="Most instances in one batch.")
    max_cost: int | None = Field(
        None,
        ge=1,
        description="Most that a batch costs: its longest instance, in bytes of JSON, times their number. "
        "For models that pad: short instances then travel with short ones.",
    )
    per_worker: int = Field(
        1, ge=1, le=16, description="Batches in flight for each ready worker of the model."
    )


class ModelSettings(_Table):
    """How one model is asked. A policy is `true`, `false`, or a table of its own settings."""

    deterministic: bool = Field(
        default=True,
        description="Whether equal input gives equal output; what rests on that is left out otherwise.",
    )
    caching: CachingSettings | None = None
    coalescing: bool = Field(
        default=True, description="Whether what is being asked for already is asked for once."
    )
    admission: AdmissionSettings | None = AdmissionSettings()
    batching: BatchingSettings | None = BatchingSettings()

    timeout: Seconds = Field(30.0, description="Total timeout where the caller names none.")
    attempt_timeout: Seconds = Field(
        20.0, description="Per-try timeout; keep it below the model's `responseTimeout` in TorchServe."
    )
    payload: Literal["instances", "body"] = Field(
        "instances",
        description='What the model\'s handler takes: `{"instances": […]}`, or one bare instance a request.',
    )
    canary: Any = Field(
        None, description="An instance the model must answer before a server counts as ready for it."
    )

    @field_validator("caching", "admission", "batching", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """`true` is the policy with its defaults, `false` is no policy."""
        match value:
            case False:
                return None
            case True:
                return {}
        return value


class HealthSettings(_Table):
    """How servers are watched."""

    interval: Seconds = Field(5.0, description="Between two looks at a healthy fleet.")
    interval_down: Seconds = Field(1.0, description="Between two looks while a server has a problem.")
    probe_timeout: Seconds = Field(2.0, description="For one management call.")
    canary_timeout: Seconds = Field(5.0, description="For one canary prediction.")


class HttpSettings(_Table):
    """What is accepted from callers."""

    max_body_bytes: int = Field(6_553_500, gt=0, description="Largest request body; TorchServe's default.")
    max_instances: int = Field(1_000, gt=0, description="Most instances in one request.")
    max_timeout: Seconds = Field(
        120.0, description="Cap on `X-Request-Timeout` and on every model's timeout."
    )


class CacheSettings(_Table):
    """Where answers are remembered."""

    max_bytes: int = Field(
        268_435_456, gt=0, description="Memory of this process for answers, without Redis."
    )


class RedisSettings(_Table):
    """A Redis that gateway processes share: for answers, and for who asks."""

    url: Annotated[SecretStr, AfterValidator(_of_redis)] = Field(
        description="`redis://[user:password@]host:port/database`, or `rediss://…`."
    )
    timeout: Seconds = Field(0.01, description="After it, a look into the cache is a miss.")
    max_value_bytes: int = Field(65_536, gt=0, description="Larger predictions are not remembered.")
    lease: Seconds = Field(
        25.0,
        description="How long other processes leave an instance to the one that asks for it; "
        "keep it above every model's `attempt_timeout`, and below its `timeout`.",
    )


class JobsSettings(_Table):
    """Work that is accepted now and answered later. With `broker` and `redis` it is done by workers."""

    path: Path = Field(
        Path(".run/jobs.sqlite"), description="Where jobs are kept without `redis`: a file of this gateway."
    )
    broker: Annotated[SecretStr, AfterValidator(_of_broker)] | None = Field(
        None, description="RabbitMQ, which carries jobs to workers: `amqp://user:password@host:5672/vhost`."
    )
    redis: Annotated[SecretStr, AfterValidator(_of_redis)] | None = Field(
        None,
        description="A Redis of its own for jobs, with `appendonly yes`, `appendfsync always`, "
        "`maxmemory-policy noeviction`.",
    )
    redis_timeout: Seconds = Field(3.0, description="After it, that Redis counts as down.")
    broker_timeout: Seconds = Field(5.0, description="After it, a job that is not confirmed is refused.")
    timeout: Seconds = Field(3_600.0, description="How long a job may take where its caller does not say.")
    retention: Seconds = Field(86_400.0, description="How long a job is kept after its end.")
    answer_timeout: Seconds = Field(
        30.0, description="How long `/api/predict/` waits where the caller does not say."
    )
    answer_retention: Seconds = Field(300.0, description="How long a job of `/api/predict/` is kept.")
    default_model: str = Field("sentiment", min_length=1, description="The model of `/api/predict/`.")
    max_instances: int = Field(1_000_000, gt=0, description="Most instances in one job.")
    concurrency: int = Field(
        16, ge=1, le=256, description="Messages that a worker works at once, of each of both queues."
    )
    stop_timeout: Seconds = Field(
        30.0, description="How long a worker that is stopped goes on with what it has begun."
    )
    webhook_secrets: tuple[WebhookSecret, ...] = Field(
        (), description="`whsec_…`: they sign what webhooks are told. Without one there are no webhooks."
    )
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Inner networks that webhooks may be in, by http as well. All others must be public."
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.broker is None) != (self.redis is None):
            message = "broker and redis belong together: set both, or none of them"
            raise ValueError(message)
        return self


class LogSettings(_Table):
    """What is logged, to standard error."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level logged.")
    access: bool = Field(default=True, description="Whether each request is logged.")


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    servers: dict[ServerName, ServerSettings] = Field(
        default_factory=lambda: {
            "local": ServerSettings(
                url=HttpUrl("http://127.0.0.1:8080"), management_url=HttpUrl("http://127.0.0.1:8081")
            )
        },
        min_length=1,
        description="The TorchServe fleet, by name. Requests never reach any other host.",
    )
    defaults: ModelSettings = Field(ModelSettings(), description="For models without a table of their own.")
    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description="Models that have to be served for the gateway to be ready, and how each is asked; "
        "keys left out come from `defaults`.",
    )
    health: HealthSettings = HealthSettings()
    http: HttpSettings = HttpSettings()
    cache: CacheSettings = CacheSettings()
    redis: RedisSettings | None = Field(None, description="Without it every process is whole by itself.")
    jobs: JobsSettings = JobsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (the environment is enough)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _config_path())

    def payload(self, name: str) -> Literal["instances", "body"]:
        """`model(name).payload`, cheaply: every request needs it."""
        own = self.models.get(name)
        return self.defaults.payload if own is None or "payload" not in own.model_fields_set else own.payload

    def model(self, name: str) -> ModelSettings:
        """How `name` is asked: its own table, completed from `defaults`."""
        own = self.models.get(name, ModelSettings())
        return self.defaults.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


class SettingsError(Exception):
    """The configuration is not usable; the message names each key and what is allowed."""


def load() -> Settings:
    """The settings of this process. Raises SettingsError."""
    try:
        _check_path()
        _check_variables()
        return Settings()
    except ValidationError as error:
        problems = [f"  {_key(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
        raise SettingsError("\n".join([f"{_config_path()} or the environment:", *problems])) from None
    except NotJson as error:  # it does not say which variable
        message = f'The environment: {error}; lists and tables are JSON there, like ["a", "b"].'
        raise SettingsError(message) from None
    except (ValueError, OSError) as error:  # TOML syntax, no permission
        message = f"{_config_path()} or the environment: {error}"
        raise SettingsError(message) from None


def _config_path() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG))


def _check_path() -> None:
    if CONFIG_VARIABLE in os.environ and not _config_path().is_file():
        message = f"{CONFIG_VARIABLE} names {_config_path()}, which is not a file."
        raise SettingsError(message)


def _check_variables() -> None:
    """pydantic-settings overlooks misspelt variables; a typing error should not pass silently."""
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG", "URL"}
    for variable in os.environ:
        if variable.upper().startswith(PREFIX):
            name = variable.upper().removeprefix(PREFIX).partition("__")[0]
            if name not in known:
                message = f"{variable}: no such setting. Known: {PREFIX}{f', {PREFIX}'.join(sorted(known))}."
                raise SettingsError(message)


def _key(loc: tuple[int | str, ...]) -> str:
    variable = PREFIX + "__".join(str(part).upper() for part in loc)
    return f"{'.'.join(map(str, loc))} ({variable})"
