from __future__ import annotations

from bootstrap.local import GATEWAY_GRACE
from interface.cli import GRACE


def test_the_gateway_is_killed_well_after_the_time_it_gives_requests_in_flight() -> None:
    assert GATEWAY_GRACE >= GRACE + 5
