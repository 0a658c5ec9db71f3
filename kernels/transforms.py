"""Derivatives that an opaque op does not know: torch.func's transforms, forward mode, and gradients of gradients.

Where they are asked for, the plain form of an op is taken, which torch differentiates any way and any number of times.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoo.kernels.errors import InputError

__all__ = ["check_untransformed", "differentiable_gradients", "differentiates_again", "transformed"]


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp and what is built on them) or forward-mode AD looks at what is computed.

    An op of torch.library knows reverse mode alone: `torch.func.grad` fails in it, and forward mode gets zeros.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_untransformed(impl: str) -> None:
    """Refuse an implementation that knows plain reverse mode alone, asked for where `transformed`.

    Raises:
        InputError: it is asked for there.
    """
    if transformed():
        raise InputError(
            f"impl: {impl!r} has no derivatives for torch.func's transforms and forward mode; leave it out there"
        )


def differentiates_again() -> bool:
    """Whether a backward pass that runs now is to be differentiated in its turn (`create_graph=True`)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable_gradients(
    run: Callable[[list[Tensor | None]], Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    incoming: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of `run(inputs)` for those inputs that want one, themselves differentiable; the rest get None.

    Args:
        run: a plain form of the op.
        inputs: what it takes; None stays None.
        incoming: gradients of its results, None for those that nothing depends on.
    """
    with torch.enable_grad():
        # Views, so that a tensor that is given twice, or made of another one, has a gradient for each place.
        inputs = [x if x is None or not x.requires_grad else x.view_as(x) for x in inputs]
        pairs = [
            (result, gradient)
            for result, gradient in zip(run(inputs), incoming, strict=True)
            if gradient is not None and result.requires_grad
        ]
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        results, gradients = zip(*pairs, strict=True) if pairs else ((), ())
        found = iter(torch.autograd.grad(results, wanted, gradients, create_graph=True, allow_unused=True))
        return [next(found) if x is not None and x.requires_grad else None for x in inputs]
