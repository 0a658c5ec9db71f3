"""Linear layers that initialisation tells apart, what stands in their place, and hooks."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["ResidualLinear", "SharedLinear", "hooks_of", "is_plain_linear", "own_part", "weight_of"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ResidualLinear(nn.Linear):
    """A projection whose output is added to the residual stream: the deeper the model, the smaller it starts."""


class SharedLinear(nn.Linear):
    """A projection whose whole output every head reads, such as the first of two thin ones."""


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module's weight, without a bias, is all that a call of it does.

    It is not where there are hooks or an adapter around it, or the weight is no plain tensor, as of int8.
    """
    if type(module) is not nn.Linear or module.bias is not None:
        return False
    return not any(getattr(module, hooks) for hooks in _HOOKS) and not is_traceable_wrapper_subclass(module.weight)


def hooks_of(model: nn.Module) -> tuple[int, ...]:
    """Return what tells apart the hooks on all modules of a model."""
    return tuple(id(hook) for module in model.modules() for kind in _HOOKS for hook in getattr(module, kind).values())


def own_part(parameter: Tensor) -> Tensor:
    """Return what this process's heads have of a parameter, where several have a layer's heads; otherwise all of it."""
    if not (dist.is_available() and dist.is_initialized()):
        return parameter
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(parameter, DTensor):
        return parameter
    # Of what all have, each adds the gradient of its own heads.
    gradients = [Partial() if placement.is_replicate() else placement for placement in parameter.placements]
    return parameter.to_local(grad_placements=gradients)


def weight_of(module: nn.Module) -> Tensor:
    """Return a linear layer's weight, for its dtype and device: those of what the layer gives.

    Some kinds of quantisation replace the weight by a method; they compute in float32 on a CPU.
    """
    weight = module.weight
    return weight if isinstance(weight, Tensor) else torch.empty(0)
