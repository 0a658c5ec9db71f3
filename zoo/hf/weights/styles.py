"""What distinguishes the model types that are like a Llama from one another."""

from typing import Literal, NamedTuple

from zoo.errors import InputError
from zoo.models import DecoderConfig

__all__ = ["ACTIVATIONS", "FEED_FORWARD", "MULTIPLIERS", "STYLES", "Style", "check_multipliers"]


class Style(NamedTuple):
    """What distinguishes one model type from a Llama."""

    architecture: str
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    plain_norm: bool = False
    """Norms have neither weights nor biases."""

    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6)
    """The key, and what it is without one."""

    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    fused: bool = False
    """Queries, keys and values are one matrix of the file, and so are the two of a gated feed-forward layer."""

    power: int | None = None
    """Gated power attention of this power, in place of softmax."""

    windowed: bool = False
    """`sliding_window` has an effect, in every layer."""

    query_key_norm: bool = False
    skips: bool = False
    """Some layers do not rotate."""

    least_share: float = 1.0
    """Of a head's channels that turn."""

    rotary_base: float = 10_000.0
    tied: bool = False
    """Whether the embedding is the head's matrix in files that do not say it."""

    multiplied: bool = False
    """Embeddings, scores, residuals and logits have multipliers."""

    biases: tuple[str, ...] = ()
    """The keys that say which linear layers have biases: `attention_bias`, `mlp_bias`, or `use_bias` of all."""

    fixed: tuple[str, ...] = ()
    """Linear layers that always have biases: `query`."""


_STARCODER2 = Style(
    "Starcoder2ForCausalLM",
    norm="layernorm",
    norm_eps=("norm_epsilon", 1e-5),
    feed_forward="gelu",
    windowed=True,
    tied=True,
    biases=("use_bias",),
)

STYLES = {
    "llama": Style("LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    "mistral": Style("MistralForCausalLM", windowed=True),
    "qwen2": Style("Qwen2ForCausalLM", fixed=("query",)),
    "qwen3": Style("Qwen3ForCausalLM", query_key_norm=True),
    "smollm3": Style(
        "SmolLM3ForCausalLM", skips=True, rotary_base=2e6, tied=True, biases=("attention_bias", "mlp_bias")
    ),
    "phi3": Style("Phi3ForCausalLM", norm_eps=("rms_norm_eps", 1e-5), fused=True, windowed=True, least_share=0.01),
    "olmo": Style(
        "OlmoForCausalLM", norm="layernorm", plain_norm=True, norm_eps=("", 1e-5), biases=("attention_bias",)
    ),
    "granite": Style("GraniteForCausalLM", multiplied=True, biases=("attention_bias", "mlp_bias")),
    "starcoder2": _STARCODER2,
    "powercoder": _STARCODER2._replace(architecture="PowerCoderForCausalLM", windowed=False, power=2),
}
"""By model type. SmolLM2 is a Llama; PowerCoder is a StarCoder2 whose attention became gated power attention."""

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
"""Keys that have the same name here."""


def check_multipliers(model_type: str, config: DecoderConfig) -> None:
    """Check that a model has no multipliers, for a model type that knows none.

    Raises:
        InputError: it has.
    """
    for name in MULTIPLIERS:
        value = getattr(config, name)
        if value != DecoderConfig.model_fields[name].default:
            raise InputError(f"model: a {model_type} has no {name}, was {value}")


FEED_FORWARD = {
    "swiglu": {"gate": "gate_proj", "expand": "up_proj", "contract": "down_proj"},
    "gelu": {"expand": "c_fc", "contract": "c_proj"},
}
"""The matrices of a feed-forward layer here, and what they are called in a file."""

ACTIVATIONS = {"swiglu": ("silu",), "gelu": ("gelu_pytorch_tanh", "gelu_new")}
"""`hidden_act` of a feed-forward layer; what is written is the first."""
