"""RWKV-7 (x070) as its authors publish it: a file of weights alone, whose shapes say what the model is."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import Piece, Reshaped, Same, Stacked, Transposed
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import check_defaults
from zoo.mixers.rwkv7 import Rwkv7Config
from zoo.models import Decoder, DecoderConfig

__all__ = ["RWKV7_KINDS", "rwkv7_settings"]

_SHAPES = {
    "vocab_size": ("emb.weight", 0),
    "hidden_size": ("emb.weight", 1),
    "num_heads": ("blocks.0.att.r_k", 0),
    "head_dim": ("blocks.0.att.r_k", 1),
    "intermediate_size": ("blocks.0.ffn.key.weight", 0),
    "decay_low_rank_dim": ("blocks.0.att.w1", 1),
    "a_low_rank_dim": ("blocks.0.att.a1", 1),
    "gate_low_rank_dim": ("blocks.0.att.g1", 1),
    "v_low_rank_dim": ("blocks.1.att.v1", 1),
}
_RANKS = {
    "decay_rank": "decay_low_rank_dim",
    "rate_rank": "a_low_rank_dim",
    "gate_rank": "gate_low_rank_dim",
    "value_rank": "v_low_rank_dim",
}
_LOW_RANK = {"decay": "w", "rate": "a", "first_share": "v"}


def rwkv7_settings(tensors: Mapping[str, Tensor], source: str) -> Settings:
    """Return as a config.json what the shapes of a file's tensors say.

    Raises:
        InputError: they are not those of an RWKV-7.
    """
    values: dict[str, Any] = {"model_type": "rwkv7", "num_hidden_layers": _layers(tensors.keys())}
    for name, (tensor, axis) in _SHAPES.items():
        if tensor in tensors and tensors[tensor].dim() > axis:
            values[name] = tensors[tensor].shape[axis]
        elif name != "v_low_rank_dim":  # of which a model of one layer has none
            raise InputError(f"{source}: {tensor}: missing, or of another shape than an RWKV-7 has")
    return Settings(values, source)


def _layers(names: Set[str]) -> int:
    return sum(name.startswith("blocks.") and name.endswith(".ln1.weight") for name in names)


def _read(settings: Settings, names: Set[str]) -> Source:
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=settings.take("hidden_size"),
        layers=settings.take("num_hidden_layers"),
        heads=settings.take("num_heads"),
        head_width=settings.take("head_dim"),
        feed_forward="rwkv7",
        feed_forward_width=settings.take("intermediate_size"),
        norm="layernorm",
        bias=True,
        positions="none",
        embedding_norm=True,
        tie_embeddings=False,
        initialization="rwkv7",
    )
    mixer = {"name": "rwkv7"} | {name: settings.take(key, None) for name, key in _RANKS.items()}
    return Source(config, [mixer] * config.layers, list(_pieces(config)))


def _pieces(config: DecoderConfig) -> Iterator[Piece]:
    row = torch.Size((1, 1, config.width))
    yield Same(("token_embedding.weight",), ("emb.weight",))
    yield from _norm("embedding_norm", "blocks.0.ln0")
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"blocks.{layer}"
        mixer, att = f"{block}.mixer", f"{source}.att"
        yield from _norm(f"{block}.mixer_norm", f"{source}.ln1")
        yield from _norm(f"{block}.feed_forward_norm", f"{source}.ln2")
        yield Stacked((f"{mixer}.mu",), tuple(f"{att}.x_{part}" for part in "rwkvag"), row)
        for name, part in _LOW_RANK.items():
            if name == "first_share" and layer == 0:
                continue
            yield Transposed((f"{mixer}.{name}.contract.weight",), (f"{att}.{part}1",))
            yield Transposed((f"{mixer}.{name}.expand.weight",), (f"{att}.{part}2",))
            yield Reshaped((f"{mixer}.{name}.expand.bias",), (f"{att}.{part}0",), row)
        yield Transposed((f"{mixer}.gate.contract.weight",), (f"{att}.g1",))
        yield Transposed((f"{mixer}.gate.expand.weight",), (f"{att}.g2",))
        yield Reshaped((f"{mixer}.removal",), (f"{att}.k_k",), row)
        yield Reshaped((f"{mixer}.replacement",), (f"{att}.k_a",), row)
        yield Same((f"{mixer}.bonus",), (f"{att}.r_k",))
        for name in ("receptance", "key", "value", "output"):
            yield Same((f"{mixer}.{name}.weight",), (f"{att}.{name}.weight",))
        for kind in ("weight", "bias"):
            yield Reshaped((f"{mixer}.norm.{kind}",), (f"{att}.ln_x.{kind}",), torch.Size((config.width,)))
        yield Reshaped((f"{block}.feed_forward.mu",), (f"{source}.ffn.x_k",), row)
        for name in ("key", "value"):
            yield Same((f"{block}.feed_forward.{name}.weight",), (f"{source}.ffn.{name}.weight",))
    yield from _norm("norm", "ln_out")
    yield Same(("head.weight",), ("head.weight",))


def _norm(name: str, source: str) -> Iterator[Piece]:
    yield from (Same((f"{name}.{kind}",), (f"{source}.{kind}",)) for kind in ("weight", "bias"))


def _write(decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    config = decoder.config
    check_defaults("rwkv7", config)
    style = (config.feed_forward, config.norm, config.positions, config.bias, config.embedding_norm)
    if style != ("rwkv7", "layernorm", "none", True, True) or config.tie_embeddings or config.norm_eps != 1e-5:
        raise InputError(
            "model: a rwkv7 has feed_forward rwkv7, layernorm with norm_eps 1e-5 and biases, no positions, a norm of "
            f"the embedding and a head of its own, was {', '.join(map(str, style))}, "
            f"tie_embeddings={config.tie_embeddings}"
        )
    for mixer in decoder.mixer_configs:
        if not isinstance(mixer, Rwkv7Config):
            raise InputError(f"model: a rwkv7 has the mixer rwkv7 in every layer, was {mixer.name}")
    pieces = list(_pieces(config))
    written: dict[str, Tensor] = {}
    for piece in pieces:
        tensors = piece.write([weights[name] for name in piece.names])
        written |= zip(piece.sources, tensors, strict=True)
    values = rwkv7_settings(written, "model").values
    return Target({key: value for key, value in values.items() if key != "model_type"}, pieces)


RWKV7_KINDS = {
    "rwkv7": Kind(
        _read,
        _write,
        meaningless=tuple(f"blocks.0.att.v{part}" for part in range(3)),  # the first layer's values are its own
        architecture="RWKV7ForCausalLM",
    )
}
"""By model type."""
