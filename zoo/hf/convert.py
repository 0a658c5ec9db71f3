"""Put another mixer between the heads of a causal language model of transformers, in place, and take it out again."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from zoo.blocks.gate import Retention
from zoo.blocks.offset import Offset
from zoo.errors import InputError
from zoo.hf.attention import INTERFACE, ConvertedAttention, attention_modules, restore_attention
from zoo.hf.between_heads import between_heads
from zoo.hf.classes import ConvertedModel, check_converted, converted_class, install
from zoo.hf.conversion import Conversion, MixerName
from zoo.hf.probe import probe_heads
from zoo.hf.report import ConversionReport, report
from zoo.hf.scores import scale_at_start

__all__ = ["convert", "restore"]


def convert(
    model: PreTrainedModel,
    mixer: MixerName = "gated-power",
    *,
    p: int | None = None,
    layers: Iterable[int] | None = None,
    gate: Retention | None = None,
    normalize: bool | None = None,
    offset: Offset | None = None,
    scale: Offset | None = None,
    window: int | None = None,
) -> ConversionReport:
    """Replace the attention of a causal language model of transformers, in place, and say what that changes.

    Weights stay as they are; projections, norms and rotary embeddings go on being the model's own code. What is new,
    the gates, offsets and scales and, where a mixer has no normaliser, a norm of each head's output, is untrained: the
    model has to be trained further to be of use. The class becomes `Zoo` and its old name, and the conversion is part
    of its config, so that `save_pretrained` and `from_pretrained` keep it.

    Args:
        model: whose attention modules call transformers' attention interface, as nearly all of its causal models do.
        mixer: "gated-power", "power", "gated-linear", "linear", "gated-delta", "delta", "sliding-window", or "softmax",
            which leaves everything as it is.
        p: the power of the scores, for the power mixers; None: 2.
        layers: indices of the layers to convert, from 0; None: all. Others keep their attention (a hybrid).
        gate: share of its past that the most forgetful and the most retentive head keep a token at the start, for gated
            mixers; None: (0.9, 0.9999).
        normalize: divide by the sum of weights, for the power mixers; None: where p is even.
        offset: added to scores before they are raised to their power, for the power mixers: a number, or "learned",
            one a head from 1 on; None: learned where p is even, else 0. `(1 + s / p)^p` comes near softmax's `exp(s)`.
        scale: times the model's own factor on scores, for the power mixers: a number, or "learned", one a head from
            1 / p on with an offset, else from 1; None: learned where the offset is, else what it would start from.
        window: tokens that a token sees, for the sliding window; None: 1,024.

    Returns:
        What is dropped, the bytes of states, and from which context on they are fewer than those of keys and values.

    Raises:
        InputError: the model is converted already, an encoder-decoder, quantised, or its attention cannot be reached;
            there is no such layer; or a state would be over the limit (see `zoo.state_limit`). It is left as it was.
        ConfigError: an option of another mixer, or a value that does not fit.
    """
    _check_model(model)
    options: dict[str, Any] = {"mixer": mixer, "p": p, "gate": gate, "normalize": normalize, "window": window}
    conversion = Conversion(**options, **_scores(mixer, p, offset, scale))
    found = list(attention_modules(model))
    if not found:
        raise InputError(
            f"model: {type(model).__name__} has no attention that calls transformers' attention interface, so that "
            "none can be converted; in a module of your own call zoo.power_attention"
        )
    if not all(getattr(module, "is_causal", True) for _, module in found):
        raise InputError(f"model: {type(model).__name__} attends in both directions; causal models can be converted")
    chosen = _choose(found, layers) if mixer != "softmax" else []
    shapes = probe_heads(model, chosen)
    conversion = conversion.replace(heads={str(layer): tuple(heads) for layer, heads in shapes.items()})
    for layer, heads in shapes.items():
        _check_state(conversion, layer, heads)
    made = converted_class(type(model))
    config = _own_config(model)
    if getattr(model, "hf_quantizer", None) is not None:  # its weights were unpacked as they were loaded
        model.hf_quantizer = None
        config.__dict__.pop("quantization_config", None)
    model.attention_before = config._attn_implementation
    install(model, conversion)
    model.__class__, config.__class__ = made, made.config_class
    config.zoo = conversion.model_dump(mode="json", exclude_none=True)
    return report(model)


def restore(model: PreTrainedModel) -> None:
    """Give a converted model its own attention back, in place. What gates and norms learned is lost.

    Raises:
        InputError: it is not converted.
    """
    check_converted(model)
    for _, module in attention_modules(model):
        if isinstance(module, ConvertedAttention):
            restore_attention(module)
    model.__class__ = model.base
    config, before = model.config, model.__dict__.pop("attention_before", None)
    if config._attn_implementation == INTERFACE:
        config._attn_implementation_internal = before or "sdpa"
    for name in ("zoo", "auto_map"):
        config.__dict__.pop(name, None)
    config.__class__ = config.base


def _check_model(model: Any) -> None:
    kind = type(model).__name__
    if isinstance(model, ConvertedModel):
        raise InputError(f"model: {kind} is converted already; zoo.hf.restore(model) gives its own attention back")
    if not isinstance(model, PreTrainedModel):
        inner = " (convert the model first, then put adapters on it)" if hasattr(model, "base_model") else ""
        raise InputError(f"model: expected a model of transformers, was {kind}{inner}")
    if model.config.is_encoder_decoder or getattr(model.config, "add_cross_attention", False):
        raise InputError(
            f"model: {kind} is an encoder-decoder, whose cross attention has no order in time; decoder-only models "
            "can be converted"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not getattr(quantizer.quantization_config, "dequantize", False):
        method = getattr(quantizer.quantization_config, "quant_method", "its quantiser")
        raise InputError(
            f"model: its weights are quantised by {getattr(method, 'value', method)}; load them whole (or call "
            "model.dequantize()), convert, and quantise afterwards"
        )


def _scores(mixer: str, p: int | None, offset: Offset | None, scale: Offset | None) -> dict[str, Any]:
    """Return options of scores: those given, and for power mixers what is best without further ones."""
    given = {name: value for name, value in {"offset": offset, "scale": scale}.items() if value is not None}
    if mixer not in Conversion.options["offset"]:
        return given
    power = 2 if p is None else p
    if power not in (1, 2, 3, 4):  # which is refused by name elsewhere
        return given
    if offset is None:
        offset = "learned" if power % 2 == 0 else 0.0
    start: Offset = "learned" if offset == "learned" else scale_at_start(power, offset)
    return {"offset": offset, "scale": start} | given


def _own_config(model: Any) -> Any:
    """Give a model a config that it shares with no other, and return it."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
    return own


def _choose(found: list[tuple[str, Any]], layers: Iterable[int] | None) -> list[tuple[str, Any]]:
    there = [module.layer_idx for _, module in found]
    wanted = there if layers is None else list(layers)
    for layer in wanted:
        if layer not in there or isinstance(layer, bool):
            raise InputError(f"layers: expected indices from {min(there)} to {max(there)}, was {layer!r}")
    return [pair for pair in found if pair[1].layer_idx in set(wanted)]


def _check_state(conversion: Conversion, layer: int, heads: Any) -> None:
    try:
        between_heads(conversion).empty(1, heads, torch.device("meta"), torch.float32)
    except InputError as error:
        raise InputError(f"layer {layer}: {error}") from None
