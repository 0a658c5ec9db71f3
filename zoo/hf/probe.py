"""What a model's attention hands to transformers' attention interface, seen by running one token through it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from zoo.errors import InputError
from zoo.hf.conversion import HeadShapes

__all__ = ["probe_heads"]

_PROBE = "zoo_probe"


def _record(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any) -> Any:
    reached = "zoo_resets" in kwargs  # as a keyword argument of the model, which it has to pass all the way
    module.probed = (HeadShapes(query.shape[1], key.shape[1], key.shape[3], value.shape[3]), reached)
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_PROBE, _record)


@torch.no_grad()
def probe_heads(model: PreTrainedModel, modules: Sequence[tuple[str, Any]]) -> dict[int, HeadShapes]:
    """Return the heads of each attention module, by its layer.

    Raises:
        InputError: a module does not call the interface, or what the model is called with does not reach it.
    """
    configs, training = {name: module.config for name, module in modules}, [m for m in model.modules() if m.training]
    try:
        for _, module in modules:
            module.config = copy.copy(module.config)
            module.config._attn_implementation_internal = _PROBE
        model.eval()
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(token, use_cache=False, zoo_resets=None)
        return {module.layer_idx: _probed(model, name, module) for name, module in modules}
    finally:
        for name, module in modules:
            module.config = configs[name]
            module.__dict__.pop("probed", None)
        for module in training:
            module.training = True


def _probed(model: Any, name: str, module: Any) -> HeadShapes:
    found = module.__dict__.get("probed")
    if found is None:
        raise InputError(
            f"model: {type(model).__name__} does not use transformers' attention interface at {name}, so that its "
            "heads cannot be reached; in a module of your own call zoo.power_attention"
        )
    shapes, reached = found
    if not reached:
        raise InputError(
            f"model: {type(model).__name__} does not pass keyword arguments on to {name}, which would not know of "
            "padding; in a module of your own call zoo.power_attention"
        )
    return shapes
