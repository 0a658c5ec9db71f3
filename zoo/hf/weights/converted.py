"""Models that `zoo.hf.convert` changed, among those that are read: what stands between their heads is a mixer here.

Weights `(offset + scale s)^p` that are divided by their sum are those of scores s with the offset over the scale: so a
learned scale needs no parameter of its own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.hf.conversion import Conversion
from zoo.hf.weights.kinds import Source
from zoo.hf.weights.pieces import Same
from zoo.hf.weights.settings import Settings

__all__ = ["read_conversion", "with_conversion", "without_scales"]

_PREFIX = "zoo_"
_KEPT = ("query_key_norm", "rotary", "rotary_base")  # of the attention that was there
_NAMES = {"retention_gate": "gate.", "power_scores": ""}  # of what a conversion adds
_TAKEN = ("power", "gated-power", "sliding-window")
_PART = re.compile(r"(?P<attention>.*\.(?P<layer>\d+)\.\w+)\.(?P<part>retention_gate|power_scores)\.(?P<rest>.+)")


def read_conversion(settings: Settings) -> Conversion | None:
    """Take what a conversion says out of a config, which is then one of the model as it was; None: there is none.

    Raises:
        InputError: it is of a mixer that a zoo model has otherwise.
    """
    model_type = settings.values.get("model_type")
    if not isinstance(model_type, str) or not model_type.startswith(_PREFIX) or "zoo" not in settings.values:
        return None
    conversion = Conversion.from_mapping(settings.take("zoo"), f"{settings.source}: zoo")
    settings.values["model_type"] = model_type.removeprefix(_PREFIX)
    settings.ignore(("auto_map",))  # the classes of the same model in transformers
    if conversion.mixer not in _TAKEN or conversion.normalize is False or (conversion.p or 2) % 2:
        raise InputError(
            f"{settings.source}: zoo: expected a conversion to power attention that is normalised, or to a window, was "
            f"{conversion.mixer}, p = {conversion.p}; AutoModelForCausalLM loads any"
        )
    return conversion


def without_scales(tensors: Mapping[str, Tensor], conversion: Conversion) -> dict[str, Tensor]:
    """Return the file's tensors with learned offsets over their scales, and without scales."""
    found = dict(tensors)
    for place in {
        part["attention"] for part in map(_PART.fullmatch, tensors) if part and part["part"] == "power_scores"
    }:
        offset, scale = (f"{place}.power_scores.{name}.value" for name in ("offset", "scale"))
        over = found.pop(scale, _scale(conversion))
        if conversion.offset != 0:
            found[offset] = found.get(offset, torch.ones(())) * _number(conversion.offset, 1.0) / over
    return found


def with_conversion(source: Source, conversion: Conversion, names: Iterable[str]) -> Source:
    """Return the source with the mixers of converted layers, and with what they brought, of these names of tensors."""
    attention: list[Mapping[str, Any]] = list(source.attention)
    for layer in conversion.layers:
        own = {key: value for key, value in attention[layer].items() if key in _KEPT}
        attention[layer] = {"name": conversion.mixer} | own | _options(conversion)
    pieces = [
        Same((f"blocks.{part['layer']}.mixer.{_NAMES[part['part']]}{part['rest']}",), (part.string,))
        for part in map(_PART.fullmatch, names)
        if part is not None and int(part["layer"]) in conversion.layers
    ]
    return source._replace(attention=attention, pieces=[*source.pieces, *pieces])


def _options(conversion: Conversion) -> dict[str, Any]:
    if conversion.mixer == "sliding-window":
        return {"window": conversion.window}
    gates = {"retention": conversion.gate} if conversion.mixer == "gated-power" else {}
    learned = conversion.offset != 0 and "learned" in (conversion.offset, conversion.scale)
    offset = "learned" if learned else _number(conversion.offset, 0.0) / _scale(conversion)
    return gates | {"p": conversion.p, "offset": offset}


def _scale(conversion: Conversion) -> float:
    return _number(conversion.scale, 1.0)


def _number(value: float | Literal["learned"], learned: float) -> float:
    return learned if value == "learned" else float(value)
