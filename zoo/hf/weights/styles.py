"""What distinguishes the model types that are like a Llama from one another."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from zoo.blocks.feed_forward import FeedForwardName
from zoo.blocks.heads import QueryKeyNorm
from zoo.blocks.norms import NormName
from zoo.errors import InputError
from zoo.models import DecoderConfig

__all__ = ["ACTIVATIONS", "BIASES", "MULTIPLIERS", "STYLES", "Names", "Style", "check_defaults", "check_multipliers"]

_BEFORE = {"mixer_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
_GATED = {"gate": "gate_proj", "expand": "up_proj", "contract": "down_proj"}


class Names(NamedTuple):
    """What parts are called in a file; of a layer, after its number."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    norms: Mapping[str, str] = _BEFORE
    """By their names here; two of the same name are one and the same."""

    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """One in which they stand one below the other, or three."""

    output: str = "o_proj"
    feed_forward: Mapping[str, str] = _GATED
    """By their names here."""


class Style(NamedTuple):
    """What distinguishes one model type from a Llama."""

    architecture: str
    names: Names = Names()
    norm: NormName = "rmsnorm"
    norm_placement: Literal["before", "after", "both"] = "before"
    plain_norm: bool = False
    """Norms have neither weights nor biases."""

    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6)
    """The key, and what it is without one."""

    feed_forward: FeedForwardName = "swiglu"
    activation: str = "hidden_act"
    """The key that says which."""

    activations: tuple[str, ...] = ()
    """Its values, of which the first is written; none here: those of `ACTIVATIONS`."""

    parallel: tuple[str, bool] = ("", False)
    """Whether a feed-forward layer reads what the mixer reads: the key, if there is one, and what it is without."""

    fused: bool = False
    """The two expanding matrices of a gated feed-forward layer are one of the file."""

    interleaved: bool = False
    """Queries, keys and values of a head stand together, head by head."""

    plain_heads: bool = False
    """Heads are of the width that is theirs of the model's."""

    ungrouped: bool = False
    """There are as many heads of keys and values as of queries, and no key says so."""

    grouped: bool = False
    """Every file says how many heads of keys and values there are."""

    power: int | None = None
    """Gated power attention of this power, in place of softmax."""

    windowed: bool = False
    """`sliding_window` has an effect, in every layer."""

    alternating: int = 0
    """Some layers have a window; all but every so many, where a file does not say it."""

    local_base: bool = False
    """Layers with a window have a rotary base of their own."""

    capped: bool = False
    """Scores and logits may have soft caps."""

    query_key_norm: QueryKeyNorm = False
    skips: bool = False
    """Some layers do not rotate."""

    share: tuple[float, float] = (1.0, 1.0)
    """Of a head's channels that turn: without a key, and the least that there may be."""

    rotary_base: float = 10_000.0
    tied: bool = False
    """Whether the embedding is the head's matrix in files that do not say it."""

    multiplied: bool = False
    """Embeddings, scores, residuals and logits have multipliers."""

    scaled: bool = False
    """Embeddings are multiplied by the root of their width."""

    query_scalar: bool = False
    """Scores are divided by the root of `query_pre_attn_scalar`."""

    biases: tuple[str, ...] = ()
    """The keys of `BIASES` that say which linear layers have biases."""

    fixed: tuple[str, ...] = ()
    """What always has biases: `query`, `output`, `feed_forward`, `head`."""


_STARCODER2 = Style(
    "Starcoder2ForCausalLM",
    norm="layernorm",
    norm_eps=("norm_epsilon", 1e-5),
    names=Names(feed_forward={"expand": "c_fc", "contract": "c_proj"}),
    feed_forward="gelu",
    windowed=True,
    grouped=True,
    tied=True,
    biases=("use_bias",),
)

_OLMO2_NORMS = {
    "mixer_after_norm": "post_attention_layernorm",
    "feed_forward_after_norm": "post_feedforward_layernorm",
}
_GEMMA = Style(
    "GemmaForCausalLM",
    norm="offset-rmsnorm",
    feed_forward="geglu",
    grouped=True,
    tied=True,
    scaled=True,
    activations=("gelu_pytorch_tanh", "gelu_new", "gelu"),  # by all of which its files mean the first
    biases=("attention_bias",),
)
_GEMMA2 = _GEMMA._replace(
    architecture="Gemma2ForCausalLM",
    names=Names(norms=_BEFORE | _OLMO2_NORMS | {"feed_forward_norm": "pre_feedforward_layernorm"}),
    norm_placement="both",
    activation="hidden_activation",
    activations=(),
    alternating=2,
    capped=True,
    query_scalar=True,
)
_NEOX = Names(
    embedding="gpt_neox.embed_in",
    layers="gpt_neox.layers",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
    attention="attention",
    projections=("query_key_value",),
    output="dense",
    feed_forward={"expand": "dense_h_to_4h", "contract": "dense_4h_to_h"},
)
_PHI = Names(
    norm="model.final_layernorm",
    norms={"mixer_norm": "input_layernorm", "feed_forward_norm": "input_layernorm"},
    output="dense",
    feed_forward={"expand": "fc1", "contract": "fc2"},
)

STYLES = {
    "llama": Style("LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    "mistral": Style("MistralForCausalLM", grouped=True, windowed=True),
    "qwen2": Style("Qwen2ForCausalLM", grouped=True, fixed=("query",)),
    "qwen3": Style("Qwen3ForCausalLM", grouped=True, query_key_norm=True),
    "smollm3": Style(
        "SmolLM3ForCausalLM",
        grouped=True,
        skips=True,
        rotary_base=2e6,
        tied=True,
        biases=("attention_bias", "mlp_bias"),
    ),
    "phi3": Style(
        "Phi3ForCausalLM",
        names=Names(projections=("qkv_proj",)),
        norm_eps=("rms_norm_eps", 1e-5),
        fused=True,
        plain_heads=True,
        windowed=True,
        share=(1.0, 0.01),
    ),
    "olmo": Style(
        "OlmoForCausalLM", norm="layernorm", plain_norm=True, norm_eps=("", 1e-5), biases=("attention_bias",)
    ),
    "olmo2": Style(
        "Olmo2ForCausalLM",
        names=Names(norms=_OLMO2_NORMS),
        norm_placement="after",
        norm_eps=("rms_norm_eps", 1e-5),
        query_key_norm="whole",
        plain_heads=True,
        biases=("attention_bias",),
    ),
    "granite": Style("GraniteForCausalLM", multiplied=True, biases=("attention_bias", "mlp_bias")),
    "arcee": Style(
        "ArceeForCausalLM",
        names=Names(feed_forward={"expand": "up_proj", "contract": "down_proj"}),
        norm_eps=("rms_norm_eps", 1e-5),
        feed_forward="squared-relu",
        biases=("attention_bias", "mlp_bias"),
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2._replace(
        architecture="Gemma3ForCausalLM",
        alternating=6,
        local_base=True,
        capped=False,
        query_key_norm=True,
        rotary_base=1e6,
    ),
    "stablelm": Style(
        "StableLmForCausalLM",
        norm="layernorm",
        norm_eps=("layer_norm_eps", 1e-5),
        plain_heads=True,
        share=(0.25, 0.01),
        biases=("use_qkv_bias",),
    ),
    "gpt_neox": Style(
        "GPTNeoXForCausalLM",
        names=_NEOX,
        norm="layernorm",
        norm_eps=("layer_norm_eps", 1e-5),
        feed_forward="erf-gelu",
        parallel=("use_parallel_residual", True),
        interleaved=True,
        plain_heads=True,
        ungrouped=True,
        share=(0.25, 0.01),
        biases=("attention_bias",),
        fixed=("feed_forward",),
    ),
    "phi": Style(
        "PhiForCausalLM",
        names=_PHI,
        activations=("gelu_new", "gelu_pytorch_tanh"),
        norm="layernorm",
        norm_eps=("layer_norm_eps", 1e-5),
        feed_forward="gelu",
        parallel=("", True),
        plain_heads=True,
        share=(0.5, 0.01),
        fixed=("query", "output", "feed_forward", "head"),
    ),
    "starcoder2": _STARCODER2,
    "powercoder": _STARCODER2._replace(architecture="PowerCoderForCausalLM", windowed=False, power=2),
}
"""By model type. SmolLM2 is a Llama; PowerCoder is a StarCoder2 whose attention became gated power attention."""

BIASES: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("query", "output"),
    "use_qkv_bias": ("query",),
    "mlp_bias": ("feed_forward",),
    "use_bias": ("query", "output", "feed_forward"),
}
"""Keys that say what has biases, and what of."""

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
"""Keys that have the same name here."""


_LATER = ("parallel", "norm_placement", "head_bias", "logits_cap")
"""Settings of a decoder that only some model types have."""


def check_defaults(model_type: str, config: DecoderConfig) -> None:
    """Check that a model has none of what some model types alone have: multipliers, norms elsewhere, a head's bias.

    Raises:
        InputError: it has.
    """
    check_multipliers(model_type, config)
    for name in _LATER:
        default = DecoderConfig.model_fields[name].default
        if getattr(config, name) != default:
            raise InputError(f"model: a {model_type} has {name} {default}, was {getattr(config, name)}")


def check_multipliers(
    model_type: str, config: DecoderConfig, own: Mapping[str, float] | None = None, known: tuple[str, ...] = ()
) -> None:
    """Check that a model has no multipliers but those of its model type.

    Args:
        model_type: for the error.
        config: the model's.
        own: multipliers that all models of the type have; None: none.
        known: multipliers that a file of the type holds.

    Raises:
        InputError: it has.
    """
    own = own or {}
    for name in MULTIPLIERS:
        value = getattr(config, name)
        if name in known or value == own.get(name, DecoderConfig.model_fields[name].default):
            continue
        expected = f"{name} {own[name]}" if name in own else f"no {name}"
        raise InputError(f"model: a {model_type} has {expected}, was {value}")


ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "swiglu": ("silu",),
    "gelu": ("gelu_pytorch_tanh", "gelu_new"),
    "geglu": ("gelu_pytorch_tanh", "gelu_new"),
    "erf-gelu": ("gelu",),
    "squared-relu": ("relu2",),
}
"""What a feed-forward layer's activation is called; what is written is the first."""
