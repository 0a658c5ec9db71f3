"""Mamba-2: blocks of its mixer alone, under the names of transformers or those of its authors."""

import math
from collections.abc import Iterator, Mapping, Set
from typing import Any, cast

import torch
from torch import Tensor

from zoo.blocks.rows import RowOrder
from zoo.errors import InputError
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import ByGroup, ByGroupSqueezed, Piece, Same, Zeros
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import check_defaults
from zoo.mixers.mamba2 import Mamba2, Mamba2Config
from zoo.models import Decoder, DecoderConfig

__all__ = ["MAMBA2_KINDS"]

_EMBEDDING = "backbone.embeddings.weight"
_AUTHORS_EMBEDDING = "backbone.embedding.weight"
_MIXER = {
    "log_decay": "A_log",
    "step_bias": "dt_bias",
    "skip": "D",
    "norm.weight": "norm.weight",
    "output.weight": "out_proj.weight",
}
"""What is the same tensor under another name."""


def _read(settings: Settings, names: Set[str]) -> Source:
    settings.expect("hidden_act", "silu")
    settings.expect("layer_types", ["linear_attention"] * settings.take("num_hidden_layers"))
    settings.ignore(("use_bias", "use_conv_bias"))  # biases are those that there are
    settings.ignore(("time_step_rank", "time_step_min", "time_step_max", "time_step_floor"))  # of the first weights
    settings.ignore(("residual_in_fp32", "rescale_prenorm_residual", "chunk_size", "rms_norm", "norm_before_gate"))
    width, expand = settings.take("hidden_size"), settings.take("expand", 2)
    heads, head_width = settings.take("num_heads"), settings.take("head_dim")
    if heads * head_width != expand * width:
        raise InputError(
            f"{settings.source}: num_heads: expected expand x hidden_size = {expand * width} over head_dim "
            f"{head_width}, was {heads}"
        )
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=width,
        layers=settings.take("num_hidden_layers"),
        heads=heads,
        head_width=head_width,
        feed_forward="none",
        norm="rmsnorm",
        norm_eps=float(settings.take("layer_norm_epsilon", 1e-5)),
        bias="backbone.layers.0.mixer.in_proj.bias" in names,
        positions="none",
        tie_embeddings=settings.take("tie_word_embeddings", False),
    )
    mixer = {
        "name": "mamba2",
        "expand": expand,
        "head_width": head_width,
        "groups": settings.take("n_groups", 8),
        "state_width": settings.take("state_size", 128),
        "convolution": settings.take("conv_kernel", 4),
        "step_limit": _step_limit(settings),
    }
    convolved = "backbone.layers.0.mixer.conv1d.bias" in names
    embedding = _AUTHORS_EMBEDDING if _AUTHORS_EMBEDDING in names else _EMBEDDING
    with torch.device("meta"):
        orders = Mamba2(Mamba2Config.from_mapping(mixer, "mixer"), config.layer_context(0)).row_orders
    return Source(config, [mixer] * config.layers, list(_pieces(config, orders, embedding, convolved)))


def _step_limit(settings: Settings) -> list[float] | None:
    low, high = (float(_number(value)) for value in settings.take("time_step_limit", (0.0, math.inf)))
    return None if (low, high) == (0.0, math.inf) else [low, high]


def _number(value: Any) -> Any:
    """Return a number as transformers writes infinity, which JSON does not have."""
    return value["__float__"] if isinstance(value, dict) and "__float__" in value else value


def _pieces(config: DecoderConfig, orders: Mapping[str, RowOrder], embedding: str, convolved: bool) -> Iterator[Piece]:
    yield Same(("token_embedding.weight",), (embedding,))
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"backbone.layers.{layer}"
        yield Same((f"{block}.mixer_norm.weight",), (f"{source}.norm.weight",))
        for name, part in _MIXER.items():
            yield Same((f"{block}.mixer.{name}",), (f"{source}.mixer.{part}",))
        for kind in ("weight", "bias") if config.bias else ("weight",):
            yield ByGroup((f"{block}.mixer.input.{kind}",), (f"{source}.mixer.in_proj.{kind}",), orders["input"])
        if config.bias:
            yield Same((f"{block}.mixer.output.bias",), (f"{source}.mixer.out_proj.bias",))
        convolution, conv1d = f"{block}.mixer.convolution", f"{source}.mixer.conv1d"
        yield ByGroupSqueezed((f"{convolution}.weight",), (f"{conv1d}.weight",), orders["convolution"])
        bias = (f"{convolution}.bias",)
        yield ByGroup(bias, (f"{conv1d}.bias",), orders["convolution"]) if convolved else Zeros(bias, ())
    yield Same(("norm.weight",), ("backbone.norm_f.weight",))
    if not config.tie_embeddings:
        yield Same(("head.weight",), ("lm_head.weight",))


def _write(decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    config, mixer = decoder.config, decoder.mixer_configs[0]
    check_defaults("mamba2", config)
    style = (config.feed_forward, config.norm, config.positions, config.embedding_norm)
    if style != ("none", "rmsnorm", "none", False):
        raise InputError(
            f"model: a mamba2 has no feed-forward layers, rmsnorm and no positions, was {', '.join(style[:3])}"
        )
    if not isinstance(mixer, Mamba2Config) or mixer.p != 1 or any(each != mixer for each in decoder.mixer_configs):
        odd = next((each for each in decoder.mixer_configs if each.name != "mamba2"), mixer)
        raise InputError(f"model: a mamba2 has the mixer mamba2 with p=1 in every layer, was {odd.name}")
    inner = mixer.expand * config.width
    heads = weights["blocks.0.mixer.skip"].shape[0]
    convolved = any(name.endswith(".convolution.bias") and bool(x.any()) for name, x in weights.items())
    values: dict[str, Any] = {
        "conv_kernel": mixer.convolution,
        "expand": mixer.expand,
        "head_dim": inner // heads,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "layer_norm_epsilon": config.norm_eps,
        "n_groups": mixer.groups,
        "num_heads": heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": None,  # which by default may be beyond the vocabulary
        "state_size": mixer.state_width,
        "tie_word_embeddings": config.tie_embeddings,
        "use_bias": config.bias,
        "use_conv_bias": convolved,
        "vocab_size": config.vocab_size,
    }
    if mixer.step_limit is not None:
        values["time_step_limit"] = list(mixer.step_limit)
    orders = cast(Mamba2, decoder.blocks[0].mixer).row_orders
    return Target(values, list(_pieces(config, orders, _EMBEDDING, convolved)))


MAMBA2_KINDS = {"mamba2": Kind(_read, _write, architecture="Mamba2ForCausalLM")}
"""By model type."""
