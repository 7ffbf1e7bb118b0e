"""How policies are put around a predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeAlias

from domain.ports import Predictor

Policy: TypeAlias = Callable[[Predictor], Predictor]


def compose(policies: Sequence[Policy], innermost: Predictor) -> Predictor:
    """`innermost` inside all `policies`; the first policy is the outermost, and sees a request first."""
    return reduce(lambda inner, policy: policy(inner), reversed(policies), innermost)
