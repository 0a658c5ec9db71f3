"""Models whose user spreads their parameters over processes by hand."""

import torch.distributed as dist
from torch import Tensor, nn

from zoo.errors import InputError

__all__ = ["check_gathered"]


def check_gathered(model: nn.Module, weight: Tensor) -> None:
    """Check that a weight is whole where a model that `fully_shard` has spread begins to compute.

    It gathers parameters for `forward`, and for the methods that it is told of.

    Raises:
        InputError: it is not.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if isinstance(model, FSDPModule) and isinstance(weight, DTensor):
        raise InputError(
            "model: its parameters are spread by fully_shard, which gathers them for forward alone; tell it of what "
            "else you call by torch.distributed.fsdp.register_fsdp_forward_method(model, name): loss, prefill, step"
        )
