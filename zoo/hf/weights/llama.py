"""Llama and its like, Mistral, Qwen2 and Qwen3: gated feed-forward layers, RMSNorms, rotary embeddings."""

from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any

from torch import Tensor

from zoo.errors import InputError
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import Joined, Piece, Same, SharedByHeads, Zeros
from zoo.hf.weights.rotary import read_rotary, write_rotary
from zoo.hf.weights.settings import Settings
from zoo.models import Decoder, DecoderConfig

__all__ = ["LLAMA_KINDS"]

_FEED_FORWARD = {"gate": "gate_proj", "expand": "up_proj", "contract": "down_proj"}
_LAYER = "model.layers.0"


def _read(model_type: str, settings: Settings, names: Set[str]) -> Source:
    heads, width = settings.take("num_attention_heads"), settings.take("hidden_size")
    settings.expect("hidden_act", "silu")
    settings.expect("pretraining_tp", 1)
    settings.expect("rope_interleaved", False)
    settings.expect("is_encoder_decoder", False)
    settings.expect("use_sliding_window", False)
    settings.ignore(("max_position_embeddings", "original_max_position_embeddings"))
    settings.ignore(("attention_bias", "mlp_bias"))  # biases are those that there are
    layers = settings.take("num_hidden_layers")
    settings.expect("layer_types", ["full_attention"] * layers)
    window = settings.take("sliding_window", None)
    if model_type != "mistral":
        window = None  # of no effect without use_sliding_window
    rotary = read_rotary(settings)
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=_key_value_heads(model_type, settings, heads),
        head_width=settings.take("head_dim", None),
        feed_forward="swiglu",
        feed_forward_width=settings.take("intermediate_size"),
        norm="rmsnorm",
        norm_eps=float(settings.take("rms_norm_eps", 1e-6)),
        bias=any(name.endswith("_proj.bias") for name in names),
        positions="rotary",
        rotary_base=rotary.base,
        rotary_scaling=rotary.scaling,
        rotary_share=rotary.share,
        tie_embeddings=settings.take("tie_word_embeddings", False),
    )
    attention: dict[str, Any] = {"name": "softmax"} if window is None else {"name": "sliding-window", "window": window}
    attention["query_key_norm"] = model_type == "qwen3"
    biased = {
        "attention": f"{_LAYER}.self_attn.q_proj.bias" in names,
        "output": f"{_LAYER}.self_attn.o_proj.bias" in names,
        "feed_forward": f"{_LAYER}.mlp.gate_proj.bias" in names,
    }
    return Source(config, attention, list(_pieces(config, attention["query_key_norm"], biased)))


def _key_value_heads(model_type: str, settings: Settings, heads: int) -> int:
    if model_type == "llama":  # of which old files do not say it
        return settings.take("num_key_value_heads", heads)
    return settings.take("num_key_value_heads")


def _pieces(config: DecoderConfig, query_key_norm: bool, biased: Mapping[str, bool]) -> Iterator[Piece]:
    context = config.layer_context(0)
    rows = (context.heads * context.head_width, *(context.key_value_heads * context.head_width,) * 2)
    yield Same("token_embedding.weight", ("model.embed_tokens.weight",))
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"model.layers.{layer}"
        yield Same(f"{block}.mixer_norm.weight", (f"{source}.input_layernorm.weight",))
        yield Same(f"{block}.feed_forward_norm.weight", (f"{source}.post_attention_layernorm.weight",))
        parts = tuple(f"{source}.self_attn.{part}_proj" for part in "qkv")
        yield from _linear(config, f"{block}.mixer.input.projection", parts, biased["attention"], rows)
        output = (f"{source}.self_attn.o_proj",)
        yield from _linear(config, f"{block}.mixer.output.projection", output, biased["output"])
        for name, part in _FEED_FORWARD.items():
            yield from _linear(
                config, f"{block}.feed_forward.{name}", (f"{source}.mlp.{part}",), biased["feed_forward"]
            )
        if query_key_norm:
            for name, part in {"query_norm": "q_norm", "key_norm": "k_norm"}.items():
                yield SharedByHeads(f"{block}.mixer.input.{name}.weight", (f"{source}.self_attn.{part}.weight",))
    yield Same("norm.weight", ("model.norm.weight",))
    if not config.tie_embeddings:
        yield Same("head.weight", ("lm_head.weight",))


def _linear(
    config: DecoderConfig, name: str, parts: tuple[str, ...], biased: bool, rows: tuple[int, ...] | None = None
) -> Iterator[Piece]:
    for kind in ("weight", "bias") if config.bias else ("weight",):
        sources = tuple(f"{part}.{kind}" for part in parts)
        if kind == "bias" and not biased:
            yield Zeros(f"{name}.bias", ())
        elif rows is None:
            yield Same(f"{name}.{kind}", sources)
        else:
            yield Joined(f"{name}.{kind}", sources, rows)


def _write(model_type: str, decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    config, context = decoder.config, decoder.config.layer_context(0)
    style = (config.feed_forward, config.norm, config.positions, config.around, config.embedding_norm)
    if style != ("swiglu", "rmsnorm", "rotary", "none", False):
        raise InputError(f"model: a {model_type} has swiglu, rmsnorm and rotary positions, was {', '.join(style[:3])}")
    mixer = decoder.mixer_configs[0]
    window = getattr(mixer, "window", None)
    expected: dict[str, Any] = {"query_key_norm": model_type == "qwen3"}
    if window is not None:
        expected["window"] = window
    allowed = ("softmax", "sliding-window") if model_type == "mistral" else ("softmax",)
    plain = type(mixer)(**expected) if mixer.name in allowed else None
    if any(each != plain for each in decoder.mixer_configs):
        raise InputError(
            f"model: a {model_type} has the mixer {' or '.join(allowed)} with query_key_norm="
            f"{expected['query_key_norm']} in every layer, was {mixer.name}; zoo.hf.to_hf takes any"
        )
    values: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": config.width,
        "head_dim": context.head_width,
        "intermediate_size": config.hidden_width,
        "num_attention_heads": context.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": context.key_value_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    } | write_rotary(config.rotary_base, config.rotary_scaling, config.rotary_share)
    biased = {"attention": model_type == "qwen2", "output": False, "feed_forward": False}
    if model_type == "llama":
        values["attention_bias"] = biased["attention"] = biased["output"] = _any_bias(weights, "mixer")
        values["mlp_bias"] = biased["feed_forward"] = _any_bias(weights, "feed_forward")
    if model_type == "mistral":
        values["sliding_window"] = window
    if model_type == "qwen2" and not config.bias:
        raise InputError("model: a qwen2 has biases of queries, keys and values, was without any (model.bias)")
    return Target(values, list(_pieces(config, expected["query_key_norm"], biased)))


def _any_bias(weights: Mapping[str, Tensor], layer: str) -> bool:
    return any(f".{layer}." in name and name.endswith(".bias") and bool(x.any()) for name, x in weights.items())


LLAMA_KINDS = {
    name: Kind(partial(_read, name), partial(_write, name), meaningless=(".rotary_emb.inv_freq",))
    for name in ("llama", "mistral", "qwen2", "qwen3")
}
"""By model type. SmolLM2 is a Llama."""
