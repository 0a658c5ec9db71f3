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

from zoo.kernels.precision import accumulation_dtype, cast_for_autocast, without_autocast
from zoo.kernels.triton_support import TRITON

__all__ = ["linear_cross_entropy"]

_LOGITS_AT_ONCE = 2**26  # a quarter GiB in float32
_FUSED_LOGITS_AT_ONCE = 2**28  # half a GiB in bfloat16


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `cross_entropy(x weight^T, targets)` over all rows, 0-d float32 (float64 for float64).

    The products are rounded to the inputs' dtype, under autocast to autocast's, and the rest is float32, as if the
    logits were made by `torch.nn.functional.linear` and cast.

    Args:
        x: rows `[N, M]`.
        weight: of the linear layer `[V, M]`.
        targets: int64 `[N]`, from 0 to V - 1.
    """
    x, weight = cast_for_autocast(x, weight)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    total, _, _ = _sum(x, weight, targets, wants_gradient)
    return total / x.shape[0]


@torch.library.custom_op("zoo::linear_cross_entropy", mutates_args=())
def _sum(x: Tensor, weight: Tensor, targets: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of all rows' losses and, where wanted, its gradients for x and weight (in float32), else empty."""
    wide = accumulation_dtype(x.dtype)
    total = x.new_zeros((), dtype=wide)
    classes = weight.shape[0]
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
            total += losses.sum()
            if wants_gradient:
                torch.mm(dlogits, weight, out=dx[at])
                _add_product(dweight, dlogits.T, x[at])
    return total, dx, dweight[:classes]


def _rows(logits: Tensor, targets: Tensor, classes: int, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Each row's loss, and the logits' gradient, if wanted, in their dtype."""
    dtype, logits = logits.dtype, logits.to(accumulation_dtype(logits.dtype))
    log_sums = logits.logsumexp(-1, keepdim=True)
    wanted = targets[:, None]
    losses = log_sums - logits.gather(1, wanted)
    if not wants_gradient:
        return losses, logits
    dlogits = logits.sub_(log_sums).exp_()
    return losses, dlogits.scatter_add_(1, wanted, dlogits.new_full(wanted.shape, -1.0)).to(dtype)


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
def _(x: Tensor, weight: Tensor, targets: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(x.dtype)
    dx = x.new_empty(x.shape) if wants_gradient else x.new_empty(0)
    return x.new_empty((), dtype=wide), dx, weight.new_empty(weight.shape if wants_gradient else 0, dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _total, dx, dweight = output
    ctx.save_for_backward(dx, dweight)
    ctx.dtype = inputs[1].dtype
    ctx.mark_non_differentiable(dx, dweight)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dtotal: Tensor | None, _dx: Tensor | None, _dweight: Tensor | None
) -> tuple[Tensor | None, ...]:
    if dtotal is None:
        return None, None, None, None
    dx, dweight = ctx.saved_tensors
    return (dx * dtotal).to(dx.dtype), (dweight * dtotal).to(ctx.dtype), None, None


_sum.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.zoo.linear_cross_entropy)
def _(x: Any, weight: Any, targets: Any, wants_gradient: bool, *, out_shape: Any = None, **_: Any) -> int:
    products = 3 if wants_gradient else 1
    return products * 2 * x[0] * x[1] * weight[0]
