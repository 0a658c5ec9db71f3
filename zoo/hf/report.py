"""What a conversion changes: the memory of a sequence, and what of the model's attention it leaves out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from transformers import PreTrainedModel

from zoo.hf.attention import ConvertedAttention, attention_modules, new_parts
from zoo.hf.classes import check_converted
from zoo.hf.conversion import Conversion
from zoo.kernels.power.supported import OFFSET_POWERS, WIDTHS
from zoo.report.numbers import size

__all__ = ["ConversionReport", "report"]


@dataclass(frozen=True)
class ConversionReport:
    """What `zoo.hf.convert` did to a model; `print` it."""

    mixer: str
    layers: tuple[int, ...]
    """Indices of the converted layers."""

    layers_in_all: int

    new_parameters: int
    """Of gates, rates, offsets, scales and norms, which start untrained."""

    state_bytes: int
    """Bytes of the converted layers' states for one sequence, whatever its length."""

    cache_bytes_per_token: int
    """Bytes of keys and values that the same layers would have kept of each token, in the model's dtype."""

    dropped: tuple[str, ...]
    """What the attention of these layers had, and no longer has."""

    notes: tuple[str, ...] = ()

    @property
    def break_even(self) -> int:
        """Tokens of context from which on the states take less memory than the cache of keys and values would."""
        return -(-self.state_bytes // self.cache_bytes_per_token) if self.cache_bytes_per_token else 0

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.layers_in_all} layers, none converted: attention stays as it was"
        lines = [
            f"{len(self.layers)} of {self.layers_in_all} layers converted to {self.mixer}, "
            f"{self.new_parameters:,} new parameters, which are untrained",
            f"state: {size(self.state_bytes)} a sequence in these layers at any length; their cache of keys "
            f"and values would be larger from {self.break_even:,} tokens on",
            *(f"dropped: {what}" for what in self.dropped),
            *self.notes,
        ]
        return "\n".join(lines)


def report(model: PreTrainedModel) -> ConversionReport:
    """Return what the conversion of a model is.

    Raises:
        InputError: it is not converted.
    """
    check_converted(model)
    conversion = Conversion.from_mapping(model.config.zoo, "config.zoo")
    found = [module for _, module in attention_modules(model)]
    converted = [module for module in found if isinstance(module, ConvertedAttention)]
    new = [part for module in converted for part in new_parts(module)]
    state = cache = 0
    for module in converted:
        heads = conversion.shapes(module.layer_idx)
        empty = module.between_heads.empty(1, heads, torch.device("meta"), model.dtype)
        state += sum(x.numel() * x.element_size() for x in _pytree.tree_leaves(empty))
        cache += heads.key_value * (heads.key_width + heads.value_width) * model.dtype.itemsize
    return ConversionReport(
        mixer=_described(conversion),
        layers=conversion.layers,
        layers_in_all=len(found),
        new_parameters=sum(p.numel() for m in new for p in m.parameters()),
        state_bytes=state,
        cache_bytes_per_token=cache,
        dropped=tuple(dict.fromkeys(what for module in converted for what in _dropped(module, conversion))),
        notes=_notes(conversion),
    )


def _described(conversion: Conversion) -> str:
    options = {"p": conversion.p, "offset": conversion.offset or None, "window": conversion.window}
    said = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
    return f"{conversion.mixer} ({said})" if said else conversion.mixer


def _dropped(module: ConvertedAttention, conversion: Conversion) -> list[str]:
    config = module.unconverted_config
    kept = conversion.window if conversion.mixer == "sliding-window" else None
    window = _first(module, "sliding_window", "window_size")
    found: list[str] = []
    if isinstance(window, int) and window != kept:
        found.append(f"a window of {window:,} tokens")
    if softcap := _first(module, "attn_logit_softcapping") or getattr(config, "attn_logit_softcapping", None):
        found.append(f"a soft cap of {softcap:g} on scores")
    dropout = _first(module, "attention_dropout", "attn_dropout")
    rate = dropout.p if isinstance(dropout, nn.Dropout) else dropout
    if isinstance(rate, float) and rate > 0:
        found.append(f"dropout of {rate:g} on weights, in training")
    if _first(module, "sinks", "sink") is not None:
        found.append("sinks")
    return found


def _first(module: object, *names: str) -> Any:
    return next((x for name in names if (x := getattr(module, name, None)) is not None), None)


def _notes(conversion: Conversion) -> tuple[str, ...]:
    if conversion.mixer.endswith("window"):
        return ()
    without = []
    if widths := sorted({x for layer in conversion.layers for x in conversion.shapes(layer)[2:]} - set(WIDTHS)):
        without.append(f"heads of width {', '.join(map(str, widths))}")
    if conversion.offset != 0 and conversion.p not in OFFSET_POWERS:
        without.append(f"p={conversion.p} with an offset")
    return tuple(f"{what} run without Triton kernels, as plain PyTorch" for what in without)
