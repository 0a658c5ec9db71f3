"""Cross-entropy of rows of logits, which its gradients replace: in a Triton kernel, one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

import zoo.kernels.targets

__all__ = ["cross_entropy_rows"]

BLOCK = 8192  # logits at a time
IGNORED = tl.constexpr(zoo.kernels.targets.IGNORED)


def cross_entropy_rows(logits: Tensor, targets: Tensor, classes: int, *, wants_gradient: bool) -> Tensor:
    """Each row's loss `[N]` in float32; where wanted, its gradient takes the place of the logits.

    Args:
        logits: contiguous `[N, columns]`, of which the first `classes` count; the gradient of the others is zero.
        targets: int64 `[N]`, from 0 to classes - 1, or -100: that row's loss and gradient are zero. Others give NaN.
    """
    rows, columns = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    cross_entropy_kernel[(rows,)](
        logits, targets, losses, columns, classes,
        BLOCK=min(BLOCK, triton.next_power_of_2(columns)), WANTS_GRADIENT=wants_gradient, num_warps=8,
    )  # fmt: skip
    return losses


@triton.jit
def cross_entropy_kernel(
    logits, targets, losses, columns, classes, BLOCK: tl.constexpr, WANTS_GRADIENT: tl.constexpr
):  # fmt: skip
    """See `cross_entropy_rows`. The logits are read twice, the second time from cache."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    target = tl.load(targets + row)
    exists = (target >= 0) & (target < classes)
    wanted = tl.load(logits + target, exists, float("nan")).to(tl.float32)
    ignored = target == IGNORED
    highest = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, at < classes, -float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    log_sum = highest + tl.log(total)
    tl.store(losses + row, tl.where(ignored, 0.0, log_sum - wanted))
    if WANTS_GRADIENT:
        for start in range(0, columns, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits + at, at < classes, -float("inf")).to(tl.float32)
            gradient = tl.exp(x - log_sum) - tl.where(at == target, 1.0, 0.0)
            gradient = tl.where(ignored, 0.0, tl.where(exists, gradient, float("nan")))
            tl.store(logits + at, gradient.to(logits.dtype.element_ty), at < columns)
