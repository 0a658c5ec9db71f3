"""A model whose heads several processes have together: of every layer each has some heads, or hidden channels.

Projections to heads are cut by rows and those back by columns, which takes torch's own styles; what is in between sees
this process's heads alone, as if there were no others. What a layer gives is added up over the processes.
"""

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from zoo.blocks.feed_forward import FeedForward, GatedFeedForward
from zoo.blocks.gate import RetentionGate
from zoo.blocks.heads import HeadOutput, HeadShape, QueryKeyValue
from zoo.blocks.norms import WholeNorm
from zoo.errors import ConfigError
from zoo.models.block import Block
from zoo.models.decoder import Decoder

__all__ = ["check_heads", "share_heads", "share_heads_of"]

_OPTION = "training.parallel.tensor"


def share_heads(model: Decoder, mesh: DeviceMesh) -> None:
    """Share out a model's heads and hidden channels in place: from now on all processes of `mesh` call it together.

    They give it the same tokens and get the same outputs and gradients; states hold a process's own heads. Its weights
    become DTensors, which `fully_shard` spreads further over another dimension of the same mesh.

    Args:
        model: the same on every process, with mixers of queries, keys and values; not compiled yet.
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
    _share_mixer(block.mixer, mesh)
    if block.feed_forward is not None:
        inner = {name: ColwiseParallel() for name in ("gate", "expand") if hasattr(block.feed_forward, name)}
        _share(block.feed_forward, mesh, {**inner, "contract": RowwiseParallel()})


def _check(name: str, block: Block, count: int) -> None:
    mixer, layer = block.mixer, block.feed_forward
    if not isinstance(getattr(mixer, "input", None), QueryKeyValue):
        raise ConfigError(f"{_OPTION}: must be 1 with mixer {name}, whose heads cannot be shared out, got {count}")
    if any(isinstance(module, WholeNorm) for module in mixer.modules()):
        raise ConfigError(f"{_OPTION}: must be 1 with mixer.query_key_norm=whole, which sees all heads, got {count}")
    heads = cast(QueryKeyValue, mixer.input).heads.key_value
    if heads % count:
        raise ConfigError(f"{_OPTION}: must divide the {heads} key/value heads of mixer {name}, got {count}")
    if layer is None:
        return
    if not isinstance(layer, FeedForward | GatedFeedForward):
        raise ConfigError(f"{_OPTION}: must be 1 with model.feed_forward=rwkv7, which sees more, got {count}")
    if (hidden := layer.expand.out_features) % count:
        raise ConfigError(f"{_OPTION}: must divide the {hidden} channels of model.feed_forward_width, got {count}")


def _share_mixer(mixer: Any, mesh: DeviceMesh) -> None:
    output: HeadOutput = mixer.output
    query, key_value, width = mixer.heads
    mixer.heads = mixer.input.heads = HeadShape(query // mesh.size(), key_value // mesh.size(), width)
    plan: dict[str, ParallelStyle] = {"input.projection": ColwiseParallel(), "output.projection": RowwiseParallel()}
    if output.gate is not None:
        plan["output.gate"] = ColwiseParallel()
    own = [module for module in mixer.modules() if _is_by_head(module)]
    for module in own:
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = distribute_tensor(parameter, mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part))
        if isinstance(module, RetentionGate):
            module.register_forward_pre_hook(_take_local)
    _share(mixer, mesh, plan)


def _is_by_head(module: nn.Module) -> bool:
    """Whether a module has parameters whose first dimension is one of heads."""
    return not isinstance(module, nn.Linear) and next(module.parameters(recurse=False), None) is not None


def _share(layer: nn.Module, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    """Cut the matrices of a layer, and add up the gradient of its input once for all of them."""
    parallelize_module(layer, mesh, plan, src_data_rank=None)  # all have the same weights
    whole = (Replicate(), None)
    parallelize_module(layer, mesh, PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole))


def _take_local(_module: nn.Module, inputs: tuple[DTensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to_local(grad_placements=[Partial()]) for x in inputs)
