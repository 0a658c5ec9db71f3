"""A model whose heads several processes have together: of every layer each has some heads, or hidden channels.

Projections to heads are cut by rows and those back by columns, which takes torch's own styles; what is in between sees
this process's heads alone, as if there were no others. What a layer gives is added up over the processes.
"""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from zoo.blocks.around import Around
from zoo.blocks.channel_mix import ChannelMix
from zoo.blocks.feed_forward import FeedForward, GatedFeedForward
from zoo.blocks.gate import RetentionGate
from zoo.blocks.linear import ResidualLinear, SharedLinear, own_part
from zoo.blocks.low_rank import LowRank
from zoo.blocks.norms import JoinedRMSNorm, RMSNorm, WholeNorm
from zoo.errors import ConfigError
from zoo.kernels.sequence import SequenceGroup
from zoo.mixers import Mixer
from zoo.mixers.hgrn2 import Hgrn2
from zoo.mixers.rwkv7 import Rwkv7
from zoo.models.block import Block
from zoo.models.decoder import Decoder

__all__ = ["check_heads", "share_heads", "share_heads_of"]

_OPTION = "training.parallel.tensor"


def share_heads(model: Decoder, mesh: DeviceMesh) -> None:
    """Share out a model's heads and hidden channels in place: from now on all processes of `mesh` call it together.

    They give it the same tokens and get the same outputs and gradients; states hold a process's own heads. Its weights
    become DTensors, which `fully_shard` spreads further over another dimension of the same mesh.

    Args:
        model: the same on every process, on its device; not compiled yet.
        mesh: of one dimension.

    Raises:
        ConfigError: a layer has no such heads, or they cannot be shared out evenly.
    """
    check_heads(model, mesh.size())
    for block in model.blocks:
        share_heads_of(cast(Block, block), mesh)


def check_heads(model: Decoder, count: int) -> None:
    """Check that so many processes can have a model's heads together.

    Raises:
        ConfigError: as of `share_heads`.
    """
    for config, block in zip(model.mixer_configs, model.blocks, strict=True):
        _check(config.name, cast(Block, block), count)


def share_heads_of(block: Block, mesh: DeviceMesh) -> None:
    """Share out the heads and hidden channels of one block, as `share_heads` does."""
    # What stands around a mixer is whole on all of them, as the residual stream is.
    _share_mixer(block.mixer.mixer if isinstance(block.mixer, Around) else block.mixer, mesh)
    layer = block.feed_forward
    if isinstance(layer, ChannelMix):  # whose input is mixed before it gets to hidden channels
        plan = {"key": ColwiseParallel(), "value": RowwiseParallel()}
        parallelize_module(layer, mesh, plan, src_data_rank=None)
    elif layer is not None:
        inner = {name: ColwiseParallel() for name in ("gate", "expand") if hasattr(layer, name)}
        _share(layer, mesh, {**inner, "contract": RowwiseParallel()})


def _check(name: str, block: Block, count: int) -> None:
    mixer = block.mixer.mixer if isinstance(block.mixer, Around) else block.mixer
    layer = block.feed_forward
    groups = mixer.head_groups
    if groups is None:
        raise ConfigError(f"{_OPTION}: must be 1 with mixer {name}, whose heads cannot be shared out, got {count}")
    if groups % count:
        heads = {"mamba2": "groups", "rwkv7": "heads"}.get(name, "key/value heads")
        raise ConfigError(f"{_OPTION}: must divide the {groups} {heads} of mixer {name}, got {count}")
    if layer is None:
        return
    expand = layer.key if isinstance(layer, ChannelMix) else cast(FeedForward | GatedFeedForward, layer).expand
    if (hidden := expand.out_features) % count:
        raise ConfigError(f"{_OPTION}: must divide the {hidden} channels of model.feed_forward_width, got {count}")


def _share_mixer(mixer: Mixer, mesh: DeviceMesh) -> None:
    mixer.keep_share(mesh.size())
    if isinstance(mixer, Rwkv7):
        _share_rwkv7(mixer, mesh)
        return
    plan: dict[str, ParallelStyle] = {}
    for name, module in list(mixer.named_modules()):
        if isinstance(module, ResidualLinear):
            plan[name] = RowwiseParallel()
        elif isinstance(module, nn.Linear) and not isinstance(module, SharedLinear):
            plan[name] = ColwiseParallel()
        else:
            for parameter_name, parameter in list(module.named_parameters(recurse=False)):
                _cut(module, parameter_name, parameter, _placement(module), mesh)
        if isinstance(module, RetentionGate):
            module.register_forward_pre_hook(_take_local)
        if isinstance(module, WholeNorm | JoinedRMSNorm):
            module.group = SequenceGroup.of(mesh.get_group(), module.weight.device)
    _share(mixer, mesh, plan)


def _placement(module: nn.Module) -> Placement:
    """Where parameters of a module, but for matrices to heads and back, have their heads."""
    if isinstance(module, SharedLinear) or type(module) is RMSNorm:
        return Replicate()  # one for all heads
    return Shard(1 if isinstance(module, Hgrn2) else 0)


def _share_rwkv7(mixer: Rwkv7, mesh: DeviceMesh) -> None:
    """Let all of it see plain tensors, and add up its input's gradient once: many matrices read mixtures of that."""
    whole = {module.contract for module in mixer.modules() if isinstance(module, LowRank)}
    for module in list(mixer.modules()):
        if isinstance(module, ResidualLinear):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_whole = name == "mu" if module is mixer else module in whole
            _cut(module, name, parameter, Replicate() if is_whole else Shard(0), mesh)
        if isinstance(module, nn.Linear):
            module.__class__ = _LocalLinear
    _share(mixer, mesh, {"output": RowwiseParallel()})
    mixer.register_forward_pre_hook(_take_first_local)


class _LocalLinear(nn.Linear):
    """A projection by what this process has of its parameters."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, own_part(self.weight), None if self.bias is None else own_part(self.bias))


def _cut(module: nn.Module, name: str, parameter: Tensor, placement: Placement, mesh: DeviceMesh) -> None:
    part = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(part, parameter.requires_grad))


def _share(layer: nn.Module, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    """Cut the matrices of a layer, and add up the gradient of its input once for all of them."""
    parallelize_module(layer, mesh, plan, src_data_rank=None)  # all have the same weights
    whole = (Replicate(), None)
    parallelize_module(layer, mesh, PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole))


def _take_first_local(_module: nn.Module, inputs: tuple[DTensor, Any]) -> tuple[Tensor, Any]:
    x, state = inputs
    return x.to_local(grad_placements=[Partial()]), state


def _take_local(_module: nn.Module, inputs: tuple[DTensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to_local(grad_placements=[Partial()]) for x in inputs)
