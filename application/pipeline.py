"""How policies are put around a predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

from domain.ports import Predictor

if TYPE_CHECKING:
    from application.recall import Lookup, Recall

Policy: TypeAlias = Callable[[Predictor], Predictor]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How one version of one model is asked.

    `recall` is where answers are remembered in this process, `lookup` where they are elsewhere.
    """

    predict: Predictor
    recall: Recall | None = None
    lookup: Lookup | None = None


def compose(policies: Sequence[Policy], innermost: Predictor) -> Predictor:
    """`innermost` inside all `policies`; the first policy is the outermost, and sees a request first."""
    return reduce(lambda inner, policy: policy(inner), reversed(policies), innermost)
