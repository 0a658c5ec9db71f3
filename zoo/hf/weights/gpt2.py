"""GPT-2: LayerNorms with biases, learned positions, and matrices that stand transposed."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

from torch import Tensor

from zoo.blocks.heads import HeadShape
from zoo.errors import InputError
from zoo.hf.weights.kinds import Kind, Source, Target
from zoo.hf.weights.pieces import ByGroup, ByGroupTransposed, Piece, Same, Transposed
from zoo.hf.weights.settings import Settings
from zoo.hf.weights.styles import check_defaults
from zoo.mixers.softmax import SoftmaxConfig
from zoo.models import Decoder, DecoderConfig

__all__ = ["GPT2_KINDS"]

_LINEAR = {
    "mixer.output.projection": "attn.c_proj",
    "feed_forward.expand": "mlp.c_fc",
    "feed_forward.contract": "mlp.c_proj",
}
_HEADS = "mixer.input.projection", "attn.c_attn"
_NORMS = {"mixer_norm": "ln_1", "feed_forward_norm": "ln_2"}


def _read(settings: Settings, names: Set[str]) -> Source:
    settings.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    settings.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention", "is_encoder_decoder"):
        settings.expect(name, False)
    dropouts = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    settings.ignore((*dropouts, "n_ctx", "reorder_and_upcast_attn", "task_specific_params", "keys_to_ignore"))
    settings.ignore(name for name in settings.values if name.startswith("summary_"))
    config = DecoderConfig(
        vocab_size=settings.take("vocab_size"),
        width=settings.take("n_embd"),
        layers=settings.take("n_layer"),
        heads=settings.take("n_head"),
        feed_forward_width=settings.take("n_inner", None),
        norm_eps=float(settings.take("layer_norm_epsilon", 1e-5)),
        max_positions=settings.take("n_positions"),
        tie_embeddings=settings.take("tie_word_embeddings", True),
    )
    attention = {"name": "softmax", "query_key_norm": False}
    return Source(config, [attention] * config.layers, list(_pieces(config)))


def _pieces(config: DecoderConfig) -> Iterator[Piece]:
    order = HeadShape(config.heads, config.heads, config.width // config.heads).row_order
    yield Same(("token_embedding.weight",), ("transformer.wte.weight",))
    yield Same(("position_embedding.weight",), ("transformer.wpe.weight",))
    for layer in range(config.layers):
        block, source = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, part in _NORMS.items():
            yield from (Same((f"{block}.{name}.{kind}",), (f"{source}.{part}.{kind}",)) for kind in ("weight", "bias"))
        here, there = f"{block}.{_HEADS[0]}", f"{source}.{_HEADS[1]}"
        yield ByGroupTransposed((f"{here}.weight",), (f"{there}.weight",), order)
        yield ByGroup((f"{here}.bias",), (f"{there}.bias",), order)
        for name, part in _LINEAR.items():
            yield Transposed((f"{block}.{name}.weight",), (f"{source}.{part}.weight",))
            yield Same((f"{block}.{name}.bias",), (f"{source}.{part}.bias",))
    yield from (Same((f"norm.{kind}",), (f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias"))
    if not config.tie_embeddings:
        yield Same(("head.weight",), ("lm_head.weight",))


def _write(decoder: Decoder, weights: Mapping[str, Tensor]) -> Target:
    config = decoder.config
    check_defaults("gpt2", config)
    style = (config.feed_forward, config.norm, config.positions, config.around, config.embedding_norm, config.bias)
    if style != ("gelu", "layernorm", "learned", "none", False, True):
        raise InputError(f"model: a gpt2 has gelu, layernorm, learned positions and biases, was {', '.join(style[:3])}")
    if config.key_value_heads not in (None, config.heads) or config.head_width not in (
        None,
        config.width // config.heads,
    ):
        raise InputError("model: a gpt2 has as many heads of keys as of queries, which divide its width")
    for mixer in decoder.mixer_configs:
        if mixer != SoftmaxConfig():
            raise InputError(f"model: a gpt2 has softmax attention in every layer, was {mixer.name}; see zoo.hf.to_hf")
    values: dict[str, Any] = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.hidden_width,
        "n_layer": config.layers,
        "n_positions": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "vocab_size": config.vocab_size,
    }
    return Target(values, list(_pieces(config)))


GPT2_KINDS = {
    "gpt2": Kind(
        _read,
        _write,
        prefix="transformer.",
        meaningless=(".attn.bias", ".attn.masked_bias"),
        architecture="GPT2LMHeadModel",
    )
}
"""By model type. The first files have no prefix, and hold masks."""
