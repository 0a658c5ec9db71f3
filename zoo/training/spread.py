"""A model over many processes: each makes and keeps its part of every layer's parameters, by FSDP2."""

from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from zoo.models import Decoder
from zoo.models.block import Block
from zoo.models.head_shares import share_heads_of
from zoo.training.distributed import Meshes

__all__ = ["communicate_at_the_end", "free_gathered", "keep_gathered", "spread"]


def spread(
    model: Decoder, meshes: Meshes, device: torch.device, *, seed: int, gather: torch.dtype, compiled: bool
) -> None:
    """Spread parameters, gradients and optimiser state over the meshes, layer by layer, in place.

    Args:
        model: on the meta device. A process holds its own parts and one whole layer at a time, and draws each layer as
            `model.reset_parameters(seed=seed)` does, so that the weights are those of a single process.
        meshes: those of the layers and of what is around them may differ.
        device: where the parts go.
        seed: what the weights are drawn from.
        gather: dtype in which weights come together for a layer; gradients are always added up in float32.
        compiled: whether each layer is compiled; gathering its parameters stays outside of the graph.
    """
    policy = MixedPrecisionPolicy() if gather == torch.float32 else MixedPrecisionPolicy(gather, torch.float32)
    for name, child in model.named_children():
        for part, module in _parts(name, child):
            module.to_empty(device=device)
            model.reset_parameters(seed=seed, part=part)
            if isinstance(child, nn.ModuleList):
                if meshes.heads is not None:
                    share_heads_of(cast(Block, module), meshes.heads)
                if compiled:
                    module.compile(fullgraph=True, dynamic=False)
                fully_shard(module, mesh=meshes.layers, mp_policy=policy)
    # Over those that share heads too: what is whole on all of them stays the same on all, to the last bit.
    fully_shard(model, mesh=meshes.around, mp_policy=policy)
    for method in ("loss", "score"):
        register_fsdp_forward_method(model, method)


def keep_gathered(model: nn.Module) -> None:
    """Let what one forward pass gathered serve its backward pass and the passes after it, up to `free_gathered`.

    For steps of several passes, which then trade memory for what they would send.
    """
    for module in _spread_modules(model):
        module.set_reshard_after_forward(False, recurse=False)


def free_gathered(model: nn.Module) -> None:
    """Let go of what forward passes gathered. After an optimiser step nothing older may be left of it."""
    for module in _spread_modules(model):
        module.reshard()


def communicate_at_the_end(model: nn.Module, *, is_last: bool) -> None:
    """Say whether the next backward pass is the last of a step: the one that adds up gradients over processes."""
    for module in _spread_modules(model):
        module.set_requires_gradient_sync(is_last, recurse=False)
        module.set_reshard_after_backward(is_last, recurse=False)


def _spread_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _parts(name: str, child: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(child, nn.ModuleList):
        return [(f"{name}.{index}", block) for index, block in enumerate(child)]
    return [(name, child)]
