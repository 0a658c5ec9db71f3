"""Each token's loss, and whether the likeliest one was right, without all logits at once: what evaluations count.

As `linear_cross_entropy`, an opaque op that makes logits for some rows at a time; it has no gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.linear_cross_entropy import check_targets
from zoo.kernels.precision import accumulation_dtype, cast_for_autocast, without_autocast
from zoo.kernels.targets import IGNORED

__all__ = ["TokenScores", "linear_scores", "logits_scores"]

key_compiled_code_by_sources()

_LOGITS_AT_ONCE = 2**26  # a quarter GiB in float32


class TokenScores(NamedTuple):
    """What each target was given; 0 and False where it is -100."""

    losses: Tensor
    """Nats, float32 (or float64)."""
    hits: Tensor
    """Bool: whether the target has the largest logit; of equal ones the first counts."""


def linear_scores(x: Tensor, weight: Tensor, targets: Tensor) -> TokenScores:
    """Return the scores `[N]` of `targets` by the logits `x weight^T`, rounded as in `linear_cross_entropy`.

    Args:
        x: rows `[N, M]`.
        weight: of the linear layer `[V, M]`.
        targets: int64 `[N]`, from 0 to V - 1, or -100: nothing is asked there.

    Raises:
        InputError: targets out of range, on a CPU.
    """
    x, weight = cast_for_autocast(x.detach(), weight.detach())
    return TokenScores(*_scores(x, weight, targets))


def logits_scores(logits: Tensor, targets: Tensor) -> TokenScores:
    """`linear_scores` of logits `[N, V]` that are there already."""
    logits = logits.to(accumulation_dtype(logits.dtype))
    ignored = targets == IGNORED
    wanted = targets.masked_fill(ignored, 0)
    losses = logits.logsumexp(-1) - logits.gather(1, wanted[:, None]).squeeze(1)
    return TokenScores(losses.masked_fill(ignored, 0), (logits.argmax(-1) == wanted) & ~ignored)


@torch.library.custom_op("zoo::token_scores", mutates_args=())
def _scores(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if targets.device.type == "cpu":
        check_targets(targets, weight.shape[0])
    losses, hits = _empty(x, weight, targets)
    rows = max(1, _LOGITS_AT_ONCE // weight.shape[0])
    with without_autocast(x):
        for start in range(0, x.shape[0], rows):
            at = slice(start, start + rows)
            losses[at], hits[at] = logits_scores(x[at] @ weight.T, targets[at])
    return losses, hits


@_scores.register_fake
def _empty(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses = x.new_empty(x.shape[:1], dtype=accumulation_dtype(x.dtype))
    return losses, torch.empty_like(losses, dtype=torch.bool)


@register_flop_formula(torch.ops.zoo.token_scores)
def _(x: Any, weight: Any, targets: Any, *, out_shape: Any = None, **_: Any) -> int:
    return 2 * x[0] * x[1] * weight[0]
