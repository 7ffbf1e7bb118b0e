"""Logs to standard error: JSON lines for machines, short lines for people."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from domain.events import (
    AttemptFailed,
    BatchSent,
    CacheFound,
    CacheLost,
    JobsAtRisk,
    JobsFound,
    JobsLost,
    ModelFailing,
    ServerFound,
    ServerLost,
)

if TYPE_CHECKING:
    from domain.events import Event

LOGGER = logging.getLogger("dispatcher")
PLAIN = re.compile(r"[\w./:,-]+", re.ASCII)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, message and the record's fields, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower():<8} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: object) -> str:
    """`value`, quoted unless it is so plain that it cannot forge a line or move a cursor."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def configure(style: Literal["auto", "json", "console"], level: str, *, access: bool) -> None:
    """Send every log of this process, uvicorn's included, to standard error in one form."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(ConsoleFormatter() if console else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # we write our own
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("aio_pika", "aiormq"):  # a stack trace for each lost connection, of which we say so
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("dispatcher.access").disabled = not access


def log_event(event: Event) -> None:
    """An Observer that writes what happened to the fleet."""
    match event:
        case BatchSent() if not LOGGER.isEnabledFor(logging.DEBUG):
            pass  # there are thousands a second
        case BatchSent(model, instances, requests, waited):
            fields = {"model": str(model), "instances": instances, "requests": requests, "waited": waited}
            LOGGER.debug("batch sent", extra={"fields": fields})
        case AttemptFailed(server, model, reason):
            fields = {"server": server, "model": str(model), "reason": reason}
            LOGGER.warning("attempt failed", extra={"fields": fields})
        case ModelFailing(server, model, reason):
            fields = {"server": server, "model": str(model), "reason": reason}
            LOGGER.error("model failing", extra={"fields": fields})
        case ServerLost(server, reason):
            LOGGER.error("server lost", extra={"fields": {"server": server, "reason": reason}})
        case ServerFound(server, models):
            fields = {"server": server, "models": ",".join(models)}
            LOGGER.info("server found", extra={"fields": fields})
        case _:
            _log_store(event)


def _log_store(event: Event) -> None:
    match event:
        case CacheLost(reason):
            LOGGER.error("cache lost", extra={"fields": {"reason": reason}})
        case CacheFound():
            LOGGER.info("cache found")
        case JobsLost(reason):
            LOGGER.error("jobs lost", extra={"fields": {"reason": reason}})
        case JobsFound():
            LOGGER.info("jobs found")
        case JobsAtRisk(reason):
            LOGGER.warning("jobs at risk", extra={"fields": {"reason": reason}})
