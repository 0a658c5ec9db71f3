"""Llama and its like: decoders with rotary positions, which differ in norms, biases, names and how matrices stand."""

from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.blocks.heads import HeadShape
from zoo.errors import InputError
from zoo.hf.weights.attention import read_attention, write_attention
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import (
    ByGroup,
    Ones,
    Piece,
    Reshaped,
    Same,
    Shared,
    SharedByHeads,
    Split,
    Zeros,
)
from zoo.hf.weights.rotary import read_rotary, write_rotary
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import ACTIVATIONS, BIASES, MULTIPLIERS, STYLES, Style, check_multipliers
from zoo.models import Decoder, DecoderConfig

__all__ = ["LLAMA_KINDS"]

_BIASED = {"query": ".mixer.input.projection.", "output": ".mixer.output.projection.", "feed_forward": ".feed_forward."}


def _read(model_type: str, settings: Settings, names: Set[str]) -> Source:
    style = STYLES[model_type]
    heads, layers = settings.take("num_attention_heads"), settings.take("num_hidden_layers")
    _ignore(model_type, settings)
    attention = read_attention(style, settings, layers)
    share, least = style.share
    rotary = read_rotary(settings, base=style.rotary_base, share=share, least_share=least)
    eps, default = style.norm_eps
    width = settings.take("hidden_size")
    parallel, always = style.parallel
    biased = _biased(style, names)
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=_key_value_heads(style, settings, heads),
        head_width=settings.take("head_dim", None),
        feed_forward=style.feed_forward,
        feed_forward_width=settings.take("intermediate_size"),
        parallel=bool(settings.take(parallel, always)) if parallel else always,
        norm=style.norm,
        norm_placement=style.norm_placement,
        norm_eps=float(settings.take(eps, default)) if eps else default,
        bias=any(name.endswith(".bias") for name in names),
        positions="rotary",
        rotary_base=rotary.base,
        rotary_scaling=rotary.scaling,
        rotary_share=rotary.share,
        tie_embeddings=settings.take("tie_word_embeddings", style.tied),
        head_bias="head" in biased,
        logits_cap=settings.take("final_logit_softcapping", None) if style.capped else None,
        **_multipliers(style, settings, width),
    )
    return Source(config, attention, list(_pieces(style, config, biased)))


def _ignore(model_type: str, settings: Settings) -> None:
    """Check or note keys that make no difference where they are what they always are."""
    style = STYLES[model_type]
    settings.expect(style.activation, *(style.activations or ACTIVATIONS[style.feed_forward]))
    for name, value in (("pretraining_tp", 1), ("rope_interleaved", False), ("is_encoder_decoder", False)):
        settings.expect(name, value)
    for name in ("use_sliding_window", "use_bidirectional_attention", "qk_layernorm", "is_decoder"):
        settings.expect(name, False)
    for name in ("clip_qkv",) if style.capped else ("clip_qkv", "attn_logit_softcapping", "final_logit_softcapping"):
        settings.expect(name)
    settings.ignore(("max_position_embeddings", "original_max_position_embeddings", "embedding_dropout"))
    settings.ignore(("residual_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout", "classifier_dropout"))
    settings.ignore(BIASES)  # biases are those that there are
    match model_type:
        case "phi3" | "powercoder":
            settings.ignore(("auto_map",))  # code that came before transformers' own, or is the only other there is
            settings.ignore(("prefill_chunk_size", "switch_over_seq_len", "chunk_size"))  # of speed alone
        case "gemma":
            settings.expect("hidden_activation", *ACTIVATIONS["geglu"])
        case "gemma2" | "gemma3_text":
            settings.expect("hidden_act", *ACTIVATIONS["geglu"])
            settings.ignore(("sliding_window_size",))  # the window once more
        case "gpt_neox":
            settings.rename("rotary_pct", "partial_rotary_factor")
            settings.rename("rotary_emb_base", "rope_theta")
        case "stablelm":
            settings.expect("use_parallel_residual", False)


def _multipliers(style: Style, settings: Settings, width: int) -> dict[str, Any]:
    if style.multiplied:
        return {name: float(settings.take(name, 1.0)) for name in MULTIPLIERS}
    scaled = {"embedding_multiplier": width**0.5} if style.scaled else {}
    if not style.query_scalar:
        return scaled
    return scaled | {"attention_multiplier": float(settings.take("query_pre_attn_scalar")) ** -0.5}


def _key_value_heads(style: Style, settings: Settings, heads: int) -> int:
    if style.ungrouped:
        return heads
    return settings.take("num_key_value_heads") if style.grouped else settings.take("num_key_value_heads", heads)


def _biased(style: Style, names: Set[str]) -> Set[str]:
    """Return what has biases in a file."""
    known = style.names
    attention = f"{known.layers}.0.{known.attention}"
    expand = "gate_up_proj" if style.fused else next(iter(known.feed_forward.values()))
    places = {
        "query": f"{attention}.{known.projections[0]}",
        "output": f"{attention}.{known.output}",
        "feed_forward": f"{known.layers}.0.mlp.{expand}",
        "head": known.head,
    }
    return {part for part, place in places.items() if f"{place}.bias" in names}


def _pieces(style: Style, config: DecoderConfig, biased: Set[str]) -> Iterator[Piece]:
    names = style.names
    yield Same(("token_embedding.weight",), (f"{names.embedding}.weight",))
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"{names.layers}.{layer}"
        for part in dict.fromkeys(names.norms.values()):
            here = tuple(f"{block}.{name}" for name, other in names.norms.items() if other == part)
            yield from _norm(style, config, here, f"{source}.{part}")
        yield from _attention(style, config, block, f"{source}.{names.attention}", biased)
        yield from _feed_forward(style, config, block, f"{source}.mlp", "feed_forward" in biased)
    yield from _norm(style, config, ("norm",), names.norm)
    if not config.tie_embeddings:
        yield Same(("head.weight",), (f"{names.head}.weight",))
    if config.head_bias:
        yield Same(("head.bias",), (f"{names.head}.bias",))


def _norm(style: Style, config: DecoderConfig, names: tuple[str, ...], source: str) -> Iterator[Piece]:
    for kind in ("weight", "bias") if style.norm == "layernorm" and config.bias else ("weight",):
        here = tuple(f"{name}.{kind}" for name in names)
        if style.plain_norm:
            yield (Ones if kind == "weight" else Zeros)(here, ())
        else:
            yield (Same if len(here) == 1 else Shared)(here, (f"{source}.{kind}",))


def _attention(style: Style, config: DecoderConfig, block: str, source: str, biased: Set[str]) -> Iterator[Piece]:
    context, names = config.layer_context(0), style.names
    heads = {"query_norm": context.heads, "key_norm": context.key_value_heads}
    shape = HeadShape(context.heads, context.key_value_heads, context.head_width)
    projection, sources = f"{block}.mixer.input.projection", tuple(f"{source}.{part}" for part in names.projections)
    # Interleaved ones stand by key head already.
    yield from _linear(config, projection, sources, "query" in biased, None if style.interleaved else shape)
    yield from _linear(config, f"{block}.mixer.output.projection", (f"{source}.{names.output}",), "output" in biased)
    if style.power is not None:
        for kind in ("weight", "bias"):
            yield Same((f"{block}.mixer.gate.{kind}",), (f"{source}.g_proj.{kind}",))
    for name, part in ({"query_norm": "q_norm", "key_norm": "k_norm"} if style.query_key_norm else {}).items():
        here, there = (f"{block}.mixer.input.{name}.weight",), (f"{source}.{part}.weight",)
        if style.query_key_norm == "whole":
            yield Reshaped(here, there, torch.Size((heads[name] * context.head_width,)))
        else:
            yield SharedByHeads(here, there)


def _feed_forward(style: Style, config: DecoderConfig, block: str, source: str, biased: bool) -> Iterator[Piece]:
    parts = dict(style.names.feed_forward)
    if style.fused:
        names = tuple(f"{block}.feed_forward.{name}.weight" for name in ("gate", "expand"))
        yield Split(names, (f"{source}.gate_up_proj.weight",))
        parts = {"contract": parts["contract"]}
    for name, part in parts.items():
        yield from _linear(config, f"{block}.feed_forward.{name}", (f"{source}.{part}",), biased)


def _linear(
    config: DecoderConfig, name: str, parts: tuple[str, ...], biased: bool, heads: HeadShape | None = None
) -> Iterator[Piece]:
    for kind in ("weight", "bias") if config.bias else ("weight",):
        sources = tuple(f"{part}.{kind}" for part in parts)
        if kind == "bias" and not biased:
            yield Zeros((f"{name}.bias",), ())
        elif heads is None:
            yield Same((f"{name}.{kind}",), sources)
        else:
            yield ByGroup((f"{name}.{kind}",), sources, heads.row_order)


def _write(model_type: str, decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    style, config, context = STYLES[model_type], decoder.config, decoder.config.layer_context(0)
    rotary = write_rotary(config.rotary_base, config.rotary_scaling, config.rotary_share)
    attention = write_attention(model_type, decoder, rotary)
    _check_style(model_type, config)
    biases, biased = _write_biases(style, weights)
    values: dict[str, Any] = {
        style.activation: (style.activations or ACTIVATIONS[style.feed_forward])[0],
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_attention_heads": context.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": None,  # which by default may be beyond the vocabulary
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }
    values |= rotary | attention | biases
    if not style.plain_heads:
        values["head_dim"] = context.head_width
    if not style.ungrouped:
        values["num_key_value_heads"] = context.key_value_heads
    if style.norm_eps[0]:
        values[style.norm_eps[0]] = config.norm_eps
    if style.parallel[0]:
        values[style.parallel[0]] = config.parallel
    if style.multiplied:
        values |= {name: getattr(config, name) for name in MULTIPLIERS}
        values["attention_multiplier"] = config.attention_multiplier or context.head_width**-0.5
    if style.capped:
        values["final_logit_softcapping"] = config.logits_cap
    if style.query_scalar:
        values["query_pre_attn_scalar"] = _query_scalar(model_type, config)
    if style.fused and config.rotary_scaling is not None:
        values["original_max_position_embeddings"] = values["rope_parameters"]["original_max_position_embeddings"]
    return Target(values, list(_pieces(style, config, biased)))


def _write_biases(style: Style, weights: Mapping[str, Tensor]) -> tuple[dict[str, bool], Set[str]]:
    """Return the keys that say which layers have biases, and which ones the file has."""
    found = {
        part
        for part, place in _BIASED.items()
        if any(place in name and name.endswith(".bias") and bool(x.any()) for name, x in weights.items())
    }
    values = {key: not found.isdisjoint(BIASES[key]) for key in style.biases}
    return values, {*style.fixed, *(part for key, said in values.items() if said for part in BIASES[key])}


def _query_scalar(model_type: str, config: DecoderConfig) -> int:
    """Return the whole number whose root divides the scores."""
    multiplier = config.attention_multiplier or config.layer_context(0).head_width ** -0.5
    scalar = round(multiplier**-2)
    if float(scalar) ** -0.5 != multiplier:
        raise InputError(
            f"model: a {model_type} has as attention_multiplier the inverse root of a whole number, was {multiplier}"
        )
    return scalar


def _check_style(model_type: str, config: DecoderConfig) -> None:
    """Check that a model has the layers of a model type.

    Raises:
        InputError: it does not.
    """
    style, context = STYLES[model_type], config.layer_context(0)
    expected = (style.feed_forward, style.norm, "rotary", "none", False)
    if (config.feed_forward, config.norm, config.positions, config.around, config.embedding_norm) != expected:
        raise InputError(
            f"model: a {model_type} has {style.feed_forward}, {style.norm} and rotary positions, was "
            f"{config.feed_forward}, {config.norm}, {config.positions}"
        )
    if config.norm_placement != style.norm_placement:
        raise InputError(
            f"model: a {model_type} has norm_placement {style.norm_placement}, was {config.norm_placement}"
        )
    if not style.parallel[0] and config.parallel != style.parallel[1]:
        raise InputError(f"model: a {model_type} has parallel {style.parallel[1]}, was {config.parallel}")
    if config.head_bias != ("head" in style.fixed):
        raise InputError(f"model: a {model_type} has head_bias {'head' in style.fixed}, was {config.head_bias}")
    if not style.capped and config.logits_cap is not None:
        raise InputError(f"model: a {model_type} has no logits_cap, was {config.logits_cap}")
    if not style.multiplied:
        own = {"embedding_multiplier": config.width**0.5} if style.scaled else {}
        check_multipliers(model_type, config, own, known=("attention_multiplier",) if style.query_scalar else ())
    if not config.bias and style.fixed:
        raise InputError(
            f"model: a {model_type} has biases of {' and '.join(style.fixed)}, was without any (model.bias)"
        )
    if not config.bias and style.norm == "layernorm" and not style.plain_norm:
        raise InputError(f"model: a {model_type} has biases in its norms, was without any (model.bias)")
    if not style.norm_eps[0] and config.norm_eps != style.norm_eps[1]:
        raise InputError(f"model: a {model_type} has norm_eps {style.norm_eps[1]}, was {config.norm_eps}")
    if config.rotary_share < style.share[1]:
        raise InputError(f"model: a {model_type} has heads that turn whole, was rotary_share {config.rotary_share}")
    if style.fused and config.rotary_scaling is not None and config.rotary_scaling.kind != "longrope":
        raise InputError(f"model: a {model_type} has longrope scaling or none, was {config.rotary_scaling.kind}")
    if style.plain_heads and config.head_width not in (None, config.width // config.heads):
        raise InputError(f"model: a {model_type} has heads of width / heads, was {config.head_width}")
    if style.ungrouped and context.key_value_heads != context.heads:
        raise InputError(
            f"model: a {model_type} has as many key_value_heads as heads, {context.heads}, was "
            f"{context.key_value_heads}"
        )


LLAMA_KINDS = {
    name: Kind(
        partial(_read, name),
        partial(_write, name),
        meaningless=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
        architecture=style.architecture,
    )
    for name, style in STYLES.items()
}
"""By model type. The first files of GPT-NeoX hold masks."""
