"""Rotary positions in a config.json: the base and the rule for longer contexts, as files old and new spell them."""

from typing import Any, NamedTuple, cast

from zoo.blocks.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RotaryScaling,
    YarnScaling,
    scalings,
)
from zoo.errors import ConfigError, InputError
from zoo.hf.weights.settings import Settings

__all__ = ["Rotary", "read_rotary", "split_rotary", "write_rotary"]

_ORIGINAL = "original_max_position_embeddings"

_NAMES: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "beta_fast": "fast_turns",
        "beta_slow": "slow_turns",
        "truncate": "truncate",
        _ORIGINAL: "original_positions",
    },
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        _ORIGINAL: "original_positions",
    },
    "longrope": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        _ORIGINAL: "original_positions",
    },
}
"""What each rule's parameters are called here, by `rope_type`."""

_ALWAYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


class Rotary(NamedTuple):
    """How queries and keys turn."""

    base: float
    scaling: RotaryScaling | None
    share: float


def read_rotary(settings: Settings, *, base: float = 10_000.0, share: float = 1.0, least_share: float = 1.0) -> Rotary:
    """Read `rope_parameters` of a config.json, or `rope_theta` and `rope_scaling` of older ones.

    Args:
        base, share: of files that do not say it.
        least_share: the least share of a head's channels that turns in such a model.

    Raises:
        InputError: the rule is not known here, or a parameter of it.
    """
    parameters = _parameters(settings)
    base = float(parameters.get("rope_theta") or settings.take("rope_theta", base))
    share = float(settings.take("partial_rotary_factor", parameters.get("partial_rotary_factor") or share))
    if not least_share <= share <= 1:
        expected = "1.0, all that such a model can be" if least_share == 1 else "more than 0 and at most 1"
        raise InputError(f"{settings.source}: partial_rotary_factor: expected {expected}, was {share}")
    kind = _kind(settings, parameters)
    longest = settings.take("max_position_embeddings", None)
    original = settings.take(_ORIGINAL, None) or parameters.get(_ORIGINAL) or longest
    names = _NAMES[kind]
    folded = {"mscale", "mscale_all_dim"} if kind == "yarn" else set()
    ignored = {_ORIGINAL}  # without a rule that needs it
    for name in sorted(parameters.keys() - names.keys() - _ALWAYS - folded - ignored):
        raise InputError(f"{settings.source}: rope_parameters.{name}: unknown key for the rope_type {kind!r}")
    if kind == "default":
        return Rotary(base, None, share)
    values = {ours: parameters[name] for name, ours in names.items() if parameters.get(name) is not None}
    if kind != "linear":
        values["original_positions"] = original
    if kind in ("yarn", "longrope") and "factor" not in values and longest and original:
        values["factor"] = max(1.0, longest / original)
    if kind == "yarn" and "attention_factor" not in values:
        values |= _folded(parameters, values.get("factor"))
    try:
        scaling = scalings[kind].from_mapping(values, f"{settings.source}: rope_parameters")
        return Rotary(base, cast(RotaryScaling, scaling), share)
    except ConfigError as error:
        raise InputError(str(error)) from None


def split_rotary(settings: Settings) -> float:
    """Return the base of layers with a window, and leave `rope_parameters` of the others in the place of those of both.

    Raises:
        InputError: they are of another kind of layer, or scaled in layers with a window.
    """
    parameters = settings.values.get("rope_parameters")
    base = float(settings.take("rope_local_base_freq", 10_000.0))  # as older files have it
    if not isinstance(parameters, dict) or "sliding_attention" not in parameters:
        return base
    for name in sorted(parameters.keys() - {"sliding_attention", "full_attention"}):
        raise InputError(f"{settings.source}: rope_parameters.{name}: unknown key")
    local = Settings({"rope_parameters": parameters["sliding_attention"]}, settings.source)
    rotary = read_rotary(local, base=base)
    if rotary.scaling is not None:
        raise InputError(
            f"{settings.source}: rope_parameters.sliding_attention.rope_type: expected 'default', all that a zoo model "
            f"can be, was {rotary.scaling.kind!r}"
        )
    settings.values["rope_parameters"] = parameters.get("full_attention")
    return rotary.base


def write_rotary(base: float, scaling: RotaryScaling | None, share: float) -> dict[str, Any]:
    """Return the keys of a config.json for a base, a rule and a share of channels."""
    kind = "default" if scaling is None else scaling.kind
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": base}
    if share != 1:
        parameters["partial_rotary_factor"] = share
    values: dict[str, Any] = {"rope_parameters": parameters}
    if scaling is None:
        return values
    held = scaling.model_dump(mode="json")
    parameters |= {name: held[ours] for name, ours in _NAMES[kind].items() if held[ours] is not None}
    match scaling:
        case DynamicScaling():
            values["max_position_embeddings"] = scaling.original_positions
        case LongropeScaling() | YarnScaling() | Llama3Scaling():
            values["max_position_embeddings"] = round(scaling.factor * scaling.original_positions)
        case LinearScaling():
            pass
    return values


def _parameters(settings: Settings) -> dict[str, Any]:
    """Return the parameters by name; `rope_scaling` is what older files say beside `rope_theta`."""
    for name in ("rope_parameters", "rope_scaling"):
        value = settings.take(name, {})
        if not isinstance(value, dict):
            raise InputError(f"{settings.source}: {name}: expected a mapping, was {value!r}")
        if value:
            settings.ignore(("rope_scaling",))
            return value
    return {}


def _kind(settings: Settings, parameters: dict[str, Any]) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if settings.values.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # as its first files call it
    if kind not in _NAMES:
        raise InputError(
            f"{settings.source}: rope_parameters.rope_type: expected one of {', '.join(_NAMES)}, all that a zoo model "
            f"can be, was {kind!r}"
        )
    return str(kind)


def _folded(parameters: dict[str, Any], factor: Any) -> dict[str, Any]:
    """Return the attention factor of DeepSeek's spelling: the quotient of two of YaRN's."""
    numerator, denominator = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not (numerator and denominator and factor):
        return {}
    plain = YarnScaling(factor=float(factor), original_positions=1).amplitude - 1
    return {"attention_factor": (1 + numerator * plain) / (1 + denominator * plain)}
