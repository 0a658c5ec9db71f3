"""Attention modules of transformers whose heads are mixed by the zoo: found, swapped in place, and swapped back."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from zoo.blocks.gate import RetentionGate
from zoo.blocks.norms import HeadNorm
from zoo.hf.between_heads import BetweenHeads, HeadInputs, between_heads
from zoo.hf.cache_layer import StateLayer, state_layer
from zoo.hf.conversion import Conversion
from zoo.hf.scores import PowerScores
from zoo.hf.softmax import SoftmaxInputs, softmax_between_heads

__all__ = [
    "INTERFACE",
    "ConvertedAttention",
    "Watcher",
    "attention_modules",
    "convert_attention",
    "mixers_of",
    "new_parts",
    "restore_attention",
]

INTERFACE = "zoo"
"""The name under which transformers' attention interface knows what runs between the heads."""

_CACHES = ("cache", "layer_past", "past_key_values", "past_key_value")
_EPS = 1e-5
_NEW = ("retention_gate", "write_rate", "output_norm", "power_scores")


Watcher = Callable[[Callable[[], Tensor], Callable[[], Tensor]], Tensor]
"""Given what computes the outputs `[B, T, Hq, V]` of a layer's mixer, and of the softmax attention that the layer had,
from the same queries, keys and values, returns the outputs that the model goes on with."""


class _Call(NamedTuple):
    """What a converted module hands to the attention interface beside queries, keys and values."""

    log_g: Tensor | None
    log_rate: Tensor | None
    resets: Tensor | None
    layer: StateLayer | None


class ConvertedAttention(nn.Module):
    """Stands before an attention module's class: takes the cache out, and adds gates and the state to the call.

    Projections, norms, the rotation and the output projection stay the module's own.
    """

    base: ClassVar[type[nn.Module]]
    parameters_by_place: ClassVar[tuple[str, ...]]
    layer_idx: int
    between_heads: BetweenHeads
    retention_gate: RetentionGate | None
    write_rate: RetentionGate | None
    output_norm: HeadNorm | None
    power_scores: PowerScores | None
    watcher: Watcher | None = None

    def forward(self, *args: Any, zoo_resets: Tensor | None = None, **kwargs: Any) -> Any:
        named = dict(zip(self.parameters_by_place, args, strict=False)) | kwargs
        cache = None
        for name in _CACHES:
            if named.get(name) is not None:
                cache, named[name] = named[name], None
        x = named[self.parameters_by_place[0]]
        log_g = None if self.retention_gate is None else self.retention_gate(x)
        log_rate = None if self.write_rate is None else self.write_rate(x)
        layer = None
        if isinstance(cache, Cache):
            layer = state_layer(cache, self.layer_idx, self.between_heads)
        return super().forward(**named, zoo_call=_Call(log_g, log_rate, zoo_resets, layer))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: what is pickled, or copied, names the class that it is made from.
        return _empty_attention, (self.base,), self.__dict__


def _empty_attention(base: Any) -> Any:
    made = converted_attention(base)
    return made.__new__(made)


@functools.cache
def converted_attention(base: Any) -> Any:
    """Return the class that a converted module of class `base` has."""
    names = tuple(inspect.signature(base.forward).parameters)[1:]
    values = {"base": base, "parameters_by_place": names, "__module__": __name__}
    return type(f"Zoo{base.__name__}", (ConvertedAttention, base), values)


def attend_between_heads(
    module: ConvertedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    zoo_call: _Call | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention interface's function: `[B, H, T, K]` in, outputs `[B, T, Hq, V]` and no weights out.

    Masks, dropout, windows, soft caps and sinks mean nothing here; `ConversionReport.dropped` names them.
    """
    assert zoo_call is not None, "only converted modules call this"
    own = functools.partial(_mix, module, query, key, value, scaling, zoo_call)
    if module.watcher is None:
        return own(), None
    inputs = SoftmaxInputs(query, key, value, scaling, zoo_call.resets)
    return module.watcher(own, functools.partial(softmax_between_heads, module, inputs, options)), None


def _mix(
    module: ConvertedAttention, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, zoo_call: _Call
) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    offset: float | Tensor = 0.0
    if module.power_scores is not None:
        q, offset = module.power_scores(q)
    inputs = HeadInputs(q, k, v, scale, zoo_call.log_g, zoo_call.log_rate, zoo_call.resets, offset)
    if zoo_call.layer is None:
        o, _ = module.between_heads.attend(inputs, None, return_state=False)
    else:
        o = zoo_call.layer.attend(inputs)
    return o if module.output_norm is None else module.output_norm(o)


AttentionInterface.register(INTERFACE, attend_between_heads)


def attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a model whose `forward` calls transformers' attention interface on a layer's own tokens."""
    for name, module in model.named_modules():
        forward = inspect.unwrap(getattr(module, "base", type(module)).forward)
        names = getattr(getattr(forward, "__code__", None), "co_names", ())
        own = isinstance(getattr(module, "layer_idx", None), int) and not getattr(module, "is_cross_attention", False)
        if own and "ALL_ATTENTION_FUNCTIONS" in names:
            yield name, module


def convert_attention(module: Any, conversion: Conversion, width: int) -> None:
    """Swap a module's class in place, and give it the parameters that its mixer needs.

    Args:
        module: of a layer that the conversion names.
        conversion: which mixer.
        width: of the layer's input, M.
    """
    mixer, heads = between_heads(conversion), conversion.shapes(module.layer_idx)
    like = next(x for x in module.parameters() if x.is_floating_point())
    with torch.device(like.device):
        gate = RetentionGate(width, mixer.gates(heads), conversion.gate) if conversion.gate is not None else None
        rate = RetentionGate(width, mixer.gates(heads), (0.5, 0.5)) if mixer.writes else None
        norm = None if mixer.normalized else HeadNorm(heads.query, heads.value_width, _EPS)
        scores = _scores(conversion, heads.query)
    for name, part in zip(_NEW, (gate, rate, norm, scores), strict=True):
        setattr(module, name, None if part is None else part.to(dtype=like.dtype))
    module.between_heads = mixer
    module.unconverted_config = module.config
    module.config = copy.copy(module.config)  # its own, so that the model's choice of attention does not reach it
    module.config._attn_implementation_internal = INTERFACE
    kind: Any = type(module)
    module.__class__ = converted_attention(kind)


def restore_attention(module: Any) -> None:
    """Take back `convert_attention`; what the new parts learned is lost."""
    module.__class__ = module.base
    module.config = module.unconverted_config
    for name in (*_NEW, "between_heads", "unconverted_config"):
        delattr(module, name)


def _scores(conversion: Conversion, heads: int) -> PowerScores | None:
    if conversion.p is None or (conversion.offset == 0 and conversion.scale == 1):
        return None
    return PowerScores(heads, conversion.p, conversion.offset, conversion.scale)


def new_parts(module: ConvertedAttention) -> list[Any]:
    """Return what a conversion gave to a module and no checkpoint of the model before it holds."""
    return [part for name in _NEW if (part := getattr(module, name)) is not None]


def mixers_of(model: nn.Module) -> dict[int, BetweenHeads]:
    """Return what stands between the heads of each converted layer, by its index."""
    return {m.layer_idx: m.between_heads for m in model.modules() if isinstance(m, ConvertedAttention)}
