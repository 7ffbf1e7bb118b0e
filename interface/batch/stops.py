"""Why a run ends before its end."""

from __future__ import annotations

AGAIN = "Run the same command to go on."


class Stopped(Exception):
    """The run cannot go on."""

    exit_code = 1


class Unusable(Stopped):
    """What was asked for cannot be done; the message says what to change."""

    exit_code = 2


class GaveUp(Stopped):
    """What stands in the way may pass; the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
