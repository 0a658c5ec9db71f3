"""The attention of models that are like a Llama: what each layer's mixer is, from a config.json and into one."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import InputError
from zoo.hf.weights.rotary import split_rotary
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import STYLES, Style
from zoo.mixers import MixerConfig, mixers
from zoo.mixers.sliding_window import SlidingWindowConfig
from zoo.models import Decoder

__all__ = ["read_attention", "write_attention"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_UNUSED_WINDOW = 4096  # which a file has to name where no layer has one


def read_attention(style: Style, settings: Settings, layers: int) -> list[dict[str, Any]]:
    """Return the mixer of each layer, as a config.

    Raises:
        InputError: a setting is missing, or means what no mixer does.
    """
    attention: dict[str, Any] = {"name": "softmax", "query_key_norm": style.query_key_norm}
    if style.power is not None:
        attention |= {"name": "gated-power", "p": style.power}
    if style.capped:
        attention["score_cap"] = settings.take("attn_logit_softcapping", None)
    window = settings.take("sliding_window", None)
    if style.alternating:
        local = attention | {"name": "sliding-window", "window": window}
        if style.local_base:
            local["rotary_base"] = split_rotary(settings)
        return [local if kind == _SLIDING else attention for kind in _layer_types(style, settings, layers)]
    settings.expect("layer_types", [_FULL] * layers)
    if style.windowed and window is not None:
        attention |= {"name": "sliding-window", "window": window}
    rotates = _rotates(settings, layers) if style.skips else [True] * layers
    return [attention if rotated else attention | {"rotary": False} for rotated in rotates]


def write_attention(model_type: str, decoder: Decoder, rotary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json that say what a decoder's mixers are.

    Args:
        model_type: one of `STYLES`.
        decoder: the model.
        rotary: `rope_parameters` of it, and what belongs to them.

    Raises:
        InputError: they are not what such a model has.
    """
    style, configs = STYLES[model_type], decoder.mixer_configs
    windowed = [each for each in configs if isinstance(each, SlidingWindowConfig)]
    window, base = (windowed[0].window, windowed[0].rotary_base) if windowed else (None, None)
    values: dict[str, Any] = {}
    if style.windowed:
        values["sliding_window"] = window
    if style.skips:
        values["no_rope_layers"] = [int(getattr(each, "rotary", None) is not False) for each in configs]
    if style.alternating:
        values["sliding_window"] = window or _UNUSED_WINDOW
        values["layer_types"] = [_SLIDING if isinstance(each, SlidingWindowConfig) else _FULL for each in configs]
    if style.local_base:
        local = {"rope_type": "default", "rope_theta": base or 10_000.0}
        values["rope_parameters"] = {_FULL: rotary["rope_parameters"], _SLIDING: local}
    if style.capped:
        values["attn_logit_softcapping"] = getattr(configs[0], "score_cap", None)
    _check_attention(model_type, configs, read_attention(style, Settings(values, "model"), len(configs)))
    return values


def _check_attention(model_type: str, configs: Sequence[MixerConfig], expected: Sequence[Mapping[str, Any]]) -> None:
    """Check that mixers are what the keys that were written of them say."""
    style = STYLES[model_type]
    windows = ["sliding-window"] if style.windowed or style.alternating else []
    allowed = ["softmax" if style.power is None else "gated-power", *windows]
    for each, options in zip(configs, expected, strict=True):
        started = {} if style.power is None else {"retention": getattr(each, "retention", None)}  # where gates start
        if each.name not in allowed or each != mixers[each.name].config.from_mapping({**options, **started}):
            raise InputError(
                f"model: a {model_type} has the mixer {' or '.join(allowed)} with query_key_norm="
                f"{style.query_key_norm} in every layer, was {each.name}; zoo.hf.to_hf takes any"
            )


def _layer_types(style: Style, settings: Settings, layers: int) -> list[str]:
    """Return what each layer's attention is; older files say that it is full in every so many layers."""
    every = settings.take("sliding_window_pattern", settings.take("_sliding_window_pattern", style.alternating))
    types = settings.take("layer_types", [_SLIDING if (layer + 1) % every else _FULL for layer in range(layers)])
    if len(types) != layers or not set(types) <= {_SLIDING, _FULL}:
        raise InputError(f"{settings.source}: layer_types: expected {layers} of {_SLIDING}, {_FULL}, was {types!r:.90}")
    return list(types)


def _rotates(settings: Settings, layers: int) -> list[bool]:
    """Return which layers rotate: the ones of `no_rope_layers`, or all but every so many."""
    interval = settings.take("no_rope_layer_interval", 4)
    rotates = settings.take("no_rope_layers", [(layer + 1) % interval != 0 for layer in range(layers)])
    if len(rotates) != layers:
        raise InputError(f"{settings.source}: no_rope_layers: expected {layers} values, was {len(rotates)}")
    return [bool(value) for value in rotates]
