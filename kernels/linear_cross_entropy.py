"""Cross-entropy of a linear layer's outputs that never holds them all: long sequences by large vocabularies.

Logits are made, and turned into gradients, for some rows at a time, so that besides inputs and gradients there is only
room for those; on a GPU a Triton kernel does it in place. The gradients are computed in the forward pass, which has
the logits; the backward pass scales them. The op is opaque to the compiler: its loop over rows would compile once for
each number of them.

Source of the idea: Hsu et al., "Liger Kernel", arXiv 2410.10989.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from zoo.kernels.cache_key import key_compiled_code_by_sources
from zoo.kernels.errors import InputError
from zoo.kernels.precision import accumulation_dtype, cast_for_autocast, without_autocast
from zoo.kernels.targets import IGNORED
from zoo.kernels.transforms import transformed
from zoo.kernels.triton_support import TRITON

__all__ = ["check_targets", "linear_cross_entropy", "logits_cross_entropy", "plain_cross_entropy"]

key_compiled_code_by_sources()

_LOGITS_AT_ONCE = 2**26  # a quarter GiB in float32
_FUSED_LOGITS_AT_ONCE = 2**28  # half a GiB in bfloat16


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of `cross_entropy(x weight^T, targets)` over the rows that count, 0-d float32 (or float64).

    The products are rounded to the inputs' dtype, under autocast to autocast's, and the rest is float32, as if the
    logits were made by `torch.nn.functional.linear` and cast; float64 inputs keep theirs. Gradients of any order, in
    forward mode and under torch.func's transforms too: beyond the first of plain reverse mode all logits are held.

    Args:
        x: rows `[N, M]`.
        weight: of the linear layer `[V, M]`.
        targets: int64 `[N]`, from 0 to V - 1, or -100: such a row counts for nothing. Where none counts, the mean is 0.
        weights: floating `[N]`, what each row counts for in the mean, at least 0; by default 1. They get no gradient.

    Raises:
        InputError: targets out of range, on a CPU; on a GPU they make the mean NaN.
    """
    if transformed():
        return plain_cross_entropy(x, weight, targets, weights)
    x, weight = cast_for_autocast(x, weight)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    total, _, _ = _sum(x, weight, targets, weights, wants_gradient)
    return total / _divisor(targets, weights, total.dtype)


def plain_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """`linear_cross_entropy` with all logits at once, in plain PyTorch, which the compiler fuses.

    Raises:
        IndexError: targets out of range; `check_targets` says more.
    """
    return logits_cross_entropy(F.linear(x, weight), targets, weights)


def logits_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """`linear_cross_entropy` of logits `[N, V]` that are there already.

    Raises:
        IndexError: targets out of range; `check_targets` says more.
    """
    logits = logits.to(accumulation_dtype(logits.dtype))
    if weights is None:
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    else:
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        total = (losses * weights.detach()).sum()
    return total / _divisor(targets, weights, logits.dtype)


def check_targets(targets: Tensor, classes: int) -> None:
    """Raise an InputError unless all `targets` are 0 to classes - 1 or -100."""
    wrong = targets[((targets < 0) | (targets >= classes)) & (targets != IGNORED)]
    if wrong.numel():
        raise InputError(f"targets: expected 0 to {classes - 1}, or {IGNORED} to be ignored, was {int(wrong[0])}")


def _divisor(targets: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What all rows count for together, or 1 where none counts."""
    counts = (targets != IGNORED).to(dtype)
    total = (counts if weights is None else counts * weights.detach()).sum()
    return torch.where(total == 0, 1, total)


@torch.library.custom_op("zoo::linear_cross_entropy", mutates_args=())
def _sum(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of all rows' losses and, where wanted, its gradients for x and weight (in float32), else empty."""
    wide = accumulation_dtype(x.dtype)
    total = x.new_zeros((), dtype=wide)
    classes = weight.shape[0]
    if targets.device.type == "cpu":
        check_targets(targets, classes)
    fused = TRITON and x.is_cuda and wide == torch.float32
    if fused:  # tensor cores want rows of whole cache lines: 50,257 logits take five times as long as 50,304
        weight = F.pad(weight, (0, 0, 0, -classes % 64))
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_gradient else x.new_empty(0)
    dweight = weight.new_zeros(weight.shape if wants_gradient else 0, dtype=wide)
    differentiate = _fused_rows if fused else _rows
    rows = max(1, (_FUSED_LOGITS_AT_ONCE if fused else _LOGITS_AT_ONCE) // weight.shape[0])
    with without_autocast(x):
        for start in range(0, x.shape[0], rows):
            at = slice(start, start + rows)
            losses, dlogits = differentiate(x[at] @ weight.T, targets[at], classes, wants_gradient)
            total += losses.sum() if weights is None else losses @ weights[at].to(wide)
            if wants_gradient:
                torch.mm(dlogits, weight, out=dx[at])
                weighted = x[at]
                if weights is not None:  # on M channels in place of V logits
                    dx[at] *= weights[at, None]
                    weighted = (weighted * weights[at, None]).to(x.dtype)
                _add_product(dweight, dlogits.T, weighted)
    return total, dx, dweight[:classes]


def _rows(logits: Tensor, targets: Tensor, classes: int, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Each row's loss, and the logits' gradient, if wanted, in their dtype; both zero where a row is ignored."""
    dtype, logits = logits.dtype, logits.to(accumulation_dtype(logits.dtype))
    ignored = (targets == IGNORED)[:, None]
    wanted = targets[:, None].masked_fill(ignored, 0)
    log_sums = logits.logsumexp(-1, keepdim=True)
    losses = (log_sums - logits.gather(1, wanted)).masked_fill(ignored, 0).squeeze(1)
    if not wants_gradient:
        return losses, logits
    dlogits = logits.sub_(log_sums.masked_fill(ignored, float("inf"))).exp_()
    return losses, dlogits.scatter_add_(1, wanted, ignored.to(dlogits.dtype) - 1).to(dtype)


def _fused_rows(logits: Tensor, targets: Tensor, classes: int, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    from zoo.kernels.cross_entropy_rows import cross_entropy_rows

    return cross_entropy_rows(logits, targets, classes, wants_gradient=wants_gradient), logits


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `a b` to a total of at least float32, without rounding the product before where the device can."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda and torch.version.hip is None:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


@_sum.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(x.dtype)
    dx = x.new_empty(x.shape) if wants_gradient else x.new_empty(0)
    return x.new_empty((), dtype=wide), dx, weight.new_empty(weight.shape if wants_gradient else 0, dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, targets, weights, _wants_gradient = inputs
    _total, dx, dweight = output
    ctx.save_for_backward(dx, dweight, x, weight, targets, weights)
    ctx.mark_non_differentiable(dx, dweight)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dtotal: Tensor | None, _dx: Tensor | None, _dweight: Tensor | None
) -> tuple[Tensor | None, ...]:
    if dtotal is None:
        return None, None, None, None, None
    dx, dweight, x, weight, targets, weights = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: what the forward pass left is no function of x and weight any more
        dx, dweight = _differentiable_gradients(x, weight, targets, weights)
    return (dx * dtotal).to(x.dtype), (dweight * dtotal).to(weight.dtype), None, None, None


def _differentiable_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of the sum for x and weight in plain PyTorch, all rows at once."""
    with without_autocast(x):
        logits = F.linear(x, weight)
        ignored = (targets == IGNORED)[:, None]
        wanted = targets[:, None].masked_fill(ignored, 0)
        dlogits = logits.softmax(-1, dtype=accumulation_dtype(x.dtype))
        dlogits = dlogits.scatter_add(1, wanted, dlogits.new_full(wanted.shape, -1.0)).masked_fill(ignored, 0)
        if weights is not None:
            dlogits = dlogits * weights[:, None]
        dlogits = dlogits.to(x.dtype)
        return dlogits @ weight, dlogits.mT @ x


_sum.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.zoo.linear_cross_entropy)
def _(x: Any, weight: Any, targets: Any, weights: Any, wants_gradient: bool, *, out_shape: Any = None, **_: Any) -> int:
    products = 3 if wants_gradient else 1
    return products * 2 * x[0] * x[1] * weight[0]
