"""Llama and its like: pre-norm decoders with rotary positions, which differ in norms, biases and how matrices stand."""

from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any

from torch import Tensor

from zoo.errors import InputError
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import Joined, Ones, Piece, Same, SharedByHeads, Split, Zeros
from zoo.hf.weights.rotary import read_rotary, write_rotary
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import ACTIVATIONS, FEED_FORWARD, MULTIPLIERS, STYLES, Style, check_multipliers
from zoo.models import Decoder, DecoderConfig

__all__ = ["LLAMA_KINDS"]


_LAYER = "model.layers.0"


def _read(model_type: str, settings: Settings, names: Set[str]) -> Source:
    style = STYLES[model_type]
    heads, layers = settings.take("num_attention_heads"), settings.take("num_hidden_layers")
    settings.expect("hidden_act", *ACTIVATIONS[style.feed_forward])
    for name, value in (("pretraining_tp", 1), ("rope_interleaved", False), ("is_encoder_decoder", False)):
        settings.expect(name, value)
    settings.expect("use_sliding_window", False)
    settings.expect("clip_qkv")
    settings.expect("layer_types", ["full_attention"] * layers)
    settings.ignore(("max_position_embeddings", "original_max_position_embeddings", "embedding_dropout"))
    settings.ignore(("residual_dropout", "resid_pdrop", "embd_pdrop"))
    settings.ignore(("attention_bias", "mlp_bias", "use_bias"))  # biases are those that there are
    if model_type in ("phi3", "powercoder"):
        settings.ignore(("auto_map",))  # code that came before transformers' own, or is the only other there is
        settings.ignore(("prefill_chunk_size", "switch_over_seq_len", "chunk_size"))  # of speed alone
    window = settings.take("sliding_window", None)
    rotary = read_rotary(settings, base=style.rotary_base, least_share=style.least_share)
    eps, default = style.norm_eps
    multipliers: dict[str, Any] = {}
    if style.multiplied:
        multipliers = {name: float(settings.take(name, 1.0)) for name in MULTIPLIERS}
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=settings.take("hidden_size"),
        layers=layers,
        heads=heads,
        key_value_heads=_key_value_heads(model_type, settings, heads),
        head_width=settings.take("head_dim", None),
        feed_forward=style.feed_forward,
        feed_forward_width=settings.take("intermediate_size"),
        norm=style.norm,
        norm_eps=float(settings.take(eps, default)) if eps else default,
        bias=any(name.endswith(".bias") for name in names),
        positions="rotary",
        rotary_base=rotary.base,
        rotary_scaling=rotary.scaling,
        rotary_share=rotary.share,
        tie_embeddings=settings.take("tie_word_embeddings", style.tied),
        **multipliers,
    )
    attention: dict[str, Any] = {"name": "softmax", "query_key_norm": style.query_key_norm}
    if style.power is not None:
        attention |= {"name": "gated-power", "p": style.power}
    if style.windowed and window is not None:
        attention |= {"name": "sliding-window", "window": window}
    rotates = _rotates(settings, layers) if style.skips else [True] * layers
    query = "qkv_proj" if style.fused else "q_proj"
    expand = "mlp.c_fc" if style.feed_forward == "gelu" else "mlp.gate_up_proj" if style.fused else "mlp.gate_proj"
    biased = {
        "query": f"{_LAYER}.self_attn.{query}.bias" in names,
        "output": f"{_LAYER}.self_attn.o_proj.bias" in names,
        "feed_forward": f"{_LAYER}.{expand}.bias" in names,
    }
    mixers = [attention if rotated else attention | {"rotary": False} for rotated in rotates]
    return Source(config, mixers, list(_pieces(style, config, biased)))


def _key_value_heads(model_type: str, settings: Settings, heads: int) -> int:
    if model_type in ("llama", "phi3", "olmo", "granite"):  # of which old files do not say it
        return settings.take("num_key_value_heads", heads)
    return settings.take("num_key_value_heads")


def _rotates(settings: Settings, layers: int) -> list[bool]:
    """Return which layers rotate: the ones of `no_rope_layers`, or all but every so many."""
    interval = settings.take("no_rope_layer_interval", 4)
    rotates = settings.take("no_rope_layers", [(layer + 1) % interval != 0 for layer in range(layers)])
    if len(rotates) != layers:
        raise InputError(f"{settings.source}: no_rope_layers: expected {layers} values, was {len(rotates)}")
    return [bool(value) for value in rotates]


def _pieces(style: Style, config: DecoderConfig, biased: Mapping[str, bool]) -> Iterator[Piece]:
    context = config.layer_context(0)
    rows = (context.heads * context.head_width, *(context.key_value_heads * context.head_width,) * 2)
    yield Same(("token_embedding.weight",), ("model.embed_tokens.weight",))
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"model.layers.{layer}"
        yield from _norm(style, config, f"{block}.mixer_norm", f"{source}.input_layernorm")
        yield from _norm(style, config, f"{block}.feed_forward_norm", f"{source}.post_attention_layernorm")
        attention = f"{source}.self_attn"
        parts = ("qkv",) if style.fused else ("q", "k", "v")
        sources = tuple(f"{attention}.{part}_proj" for part in parts)
        yield from _linear(config, f"{block}.mixer.input.projection", sources, biased["query"], rows)
        yield from _linear(config, f"{block}.mixer.output.projection", (f"{attention}.o_proj",), biased["output"])
        yield from _feed_forward(style, config, block, f"{source}.mlp", biased["feed_forward"])
        if style.power is not None:
            for kind in ("weight", "bias"):
                yield Same((f"{block}.mixer.gate.{kind}",), (f"{attention}.g_proj.{kind}",))
        if style.query_key_norm:
            for name, part in {"query_norm": "q_norm", "key_norm": "k_norm"}.items():
                yield SharedByHeads((f"{block}.mixer.input.{name}.weight",), (f"{attention}.{part}.weight",))
    yield from _norm(style, config, "norm", "model.norm")
    if not config.tie_embeddings:
        yield Same(("head.weight",), ("lm_head.weight",))


def _norm(style: Style, config: DecoderConfig, name: str, source: str) -> Iterator[Piece]:
    yield Ones((f"{name}.weight",), ()) if style.plain_norm else Same((f"{name}.weight",), (f"{source}.weight",))
    if style.norm == "layernorm" and config.bias:
        yield Zeros((f"{name}.bias",), ()) if style.plain_norm else Same((f"{name}.bias",), (f"{source}.bias",))


def _feed_forward(style: Style, config: DecoderConfig, block: str, source: str, biased: bool) -> Iterator[Piece]:
    parts = dict(FEED_FORWARD[style.feed_forward])
    if style.fused:
        names = tuple(f"{block}.feed_forward.{name}.weight" for name in ("gate", "expand"))
        yield Split(names, (f"{source}.gate_up_proj.weight",))
        parts = {"contract": parts["contract"]}
    for name, part in parts.items():
        yield from _linear(config, f"{block}.feed_forward.{name}", (f"{source}.{part}",), biased)


def _linear(
    config: DecoderConfig, name: str, parts: tuple[str, ...], biased: bool, rows: tuple[int, ...] = ()
) -> Iterator[Piece]:
    for kind in ("weight", "bias") if config.bias else ("weight",):
        sources = tuple(f"{part}.{kind}" for part in parts)
        if kind == "bias" and not biased:
            yield Zeros((f"{name}.bias",), ())
        elif len(parts) == 1:
            yield Same((f"{name}.{kind}",), sources)
        else:
            yield Joined((f"{name}.{kind}",), sources, rows)


def _write(model_type: str, decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    style, config, context = STYLES[model_type], decoder.config, decoder.config.layer_context(0)
    window, rotates = _attention(model_type, decoder)
    _check_style(model_type, config)
    values: dict[str, Any] = {
        "hidden_act": ACTIVATIONS[style.feed_forward][0],
        "hidden_size": config.width,
        "head_dim": context.head_width,
        "intermediate_size": config.hidden_width,
        "num_attention_heads": context.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": context.key_value_heads,
        "pad_token_id": None,  # which by default may be beyond the vocabulary
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    } | write_rotary(config.rotary_base, config.rotary_scaling, config.rotary_share)
    if style.norm_eps[0]:
        values[style.norm_eps[0]] = config.norm_eps
    if style.windowed:
        values["sliding_window"] = window
    if style.multiplied:
        values |= {name: getattr(config, name) for name in MULTIPLIERS}
        values["attention_multiplier"] = config.attention_multiplier or context.head_width**-0.5
    if style.skips:
        values["no_rope_layers"] = [int(rotated) for rotated in rotates]
    if style.fused and config.rotary_scaling is not None:
        values["original_max_position_embeddings"] = values["rope_parameters"]["original_max_position_embeddings"]
    attention, feed_forward = _any_bias(weights, "mixer"), _any_bias(weights, "feed_forward")
    if "use_bias" in style.biases:
        values["use_bias"] = attention = feed_forward = attention or feed_forward
    else:
        values |= {key: attention for key in ("attention_bias",) if key in style.biases}
        values |= {key: feed_forward for key in ("mlp_bias",) if key in style.biases}
    biased = {
        "query": "query" in style.fixed or (bool(style.biases) and attention),
        "output": bool(style.biases) and attention,
        "feed_forward": feed_forward and ("mlp_bias" in style.biases or "use_bias" in style.biases),
    }
    return Target(values, list(_pieces(style, config, biased)))


def _attention(model_type: str, decoder: Decoder) -> tuple[int | None, list[bool]]:
    """Return the window that all layers have, if any, and which of them rotate.

    Raises:
        InputError: the mixers are not what such a model has.
    """
    style, first = STYLES[model_type], decoder.mixer_configs[0]
    window = getattr(first, "window", None)
    expected: dict[str, Any] = {"name": first.name, "query_key_norm": style.query_key_norm}
    if window is not None:
        expected["window"] = window
    if style.power is not None:
        expected |= {"p": style.power, "retention": getattr(first, "retention", None)}  # where gates start
    allowed = ("softmax", "sliding-window") if style.windowed else ("softmax",)
    if style.power is not None:
        allowed = ("gated-power",)
    rotates = [getattr(each, "rotary", None) is not False for each in decoder.mixer_configs]
    for each, rotated in zip(decoder.mixer_configs, rotates, strict=True):
        still = {"rotary": False} if style.skips and not rotated else {}
        if first.name not in allowed or each != type(first).from_mapping(expected | still):
            raise InputError(
                f"model: a {model_type} has the mixer {' or '.join(allowed)} with query_key_norm="
                f"{style.query_key_norm} in every layer, was {each.name}; zoo.hf.to_hf takes any"
            )
    return window, rotates


def _check_style(model_type: str, config: DecoderConfig) -> None:
    """Check that a model has the layers of a model type.

    Raises:
        InputError: it does not.
    """
    style = STYLES[model_type]
    expected = (style.feed_forward, style.norm, "rotary", "none", False)
    if (config.feed_forward, config.norm, config.positions, config.around, config.embedding_norm) != expected:
        raise InputError(
            f"model: a {model_type} has {style.feed_forward}, {style.norm} and rotary positions, was "
            f"{config.feed_forward}, {config.norm}, {config.positions}"
        )
    if not style.multiplied:
        check_multipliers(model_type, config)
    if not config.bias and style.fixed:
        raise InputError(f"model: a {model_type} has biases of queries, keys and values, was without any (model.bias)")
    if not config.bias and style.norm == "layernorm" and not style.plain_norm:
        raise InputError(f"model: a {model_type} has biases in its norms, was without any (model.bias)")
    if not style.norm_eps[0] and config.norm_eps != style.norm_eps[1]:
        raise InputError(f"model: a {model_type} has norm_eps {style.norm_eps[1]}, was {config.norm_eps}")
    if config.rotary_share < style.least_share:
        raise InputError(f"model: a {model_type} has heads that turn whole, was rotary_share {config.rotary_share}")
    if style.fused and config.rotary_scaling is not None and config.rotary_scaling.kind != "longrope":
        raise InputError(f"model: a {model_type} has longrope scaling or none, was {config.rotary_scaling.kind}")
    if style.fused and config.head_width not in (None, config.width // config.heads):
        raise InputError(f"model: a {model_type} has heads of width / heads, was {config.head_width}")


def _any_bias(weights: Mapping[str, Tensor], layer: str) -> bool:
    return any(f".{layer}." in name and name.endswith(".bias") and bool(x.any()) for name, x in weights.items())


LLAMA_KINDS = {
    name: Kind(
        partial(_read, name),
        partial(_write, name),
        meaningless=(".rotary_emb.inv_freq",),
        architecture=style.architecture,
    )
    for name, style in STYLES.items()
}
"""By model type."""
