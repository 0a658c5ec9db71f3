"""The config of a decoder: everything about it but its mixers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from zoo.blocks.around import AroundName
from zoo.blocks.feed_forward import FeedForwardName, hidden_width
from zoo.blocks.layer import LayerContext
from zoo.blocks.norms import NormName
from zoo.blocks.rotary_scaling import RotaryScaling
from zoo.config import Config
from zoo.limits import LARGEST_VOCABULARY, LONGEST, MOST, MOST_LAYERS, WIDEST, WIDEST_HEAD

__all__ = ["DecoderConfig"]


class DecoderConfig(Config):
    """Sizes and style of a pre-norm decoder; the defaults are GPT-2's style.

    Llama's is `feed_forward: swiglu`, `norm: rmsnorm`, `bias: false`, `positions: rotary`, Mamba-2's
    `feed_forward: none`, `norm: rmsnorm`, `bias: false`, `positions: none`.
    """

    vocab_size: int = Field(ge=1, le=LARGEST_VOCABULARY)
    """Token ids that the model knows, 0 to vocab_size - 1."""

    width: int = Field(ge=1, le=WIDEST)
    """Width of the residual stream."""

    layers: int = Field(ge=1, le=MOST_LAYERS)
    """Blocks of a mixer and a feed-forward layer."""

    heads: int = Field(ge=1, le=MOST)
    """Query heads of a mixer."""

    key_value_heads: int | None = Field(None, ge=1, le=MOST)
    """Heads of keys and values, shared by groups of query heads; None: as many as query heads."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of a head; None: width / heads."""

    feed_forward: FeedForwardName = "gelu"
    """`gelu`, `erf-gelu` and `squared-relu` with two matrices, `swiglu` and `geglu` with three, `rwkv7` with two and a
    token shift, or `none`: blocks of a mixer alone, as in Mamba-2."""

    feed_forward_width: int | None = Field(None, ge=1, le=WIDEST)
    """Hidden width; None: 4 x width, and 8/3 x width rounded up to a multiple of 64 for swiglu and geglu."""

    parallel: bool = False
    """A block's feed-forward layer reads what its mixer reads, and not what the mixer has added to, as in GPT-NeoX."""

    around: AroundName = "none"
    """Layers that stay around a mixer that is not the architecture's own: `mamba2`, a short convolution before it and a
    gate behind it, or `rwkv7`, a token shift before it and a gate of low rank behind it."""

    norm: NormName = "layernorm"
    """`layernorm`, `rmsnorm`, or `offset-rmsnorm`, whose weights are what factors are beyond one, as in Gemma; of every
    mixer and feed-forward layer, and before the head."""

    norm_placement: Literal["before", "after", "both"] = "before"
    """Whether what a mixer or a feed-forward layer reads is normed, or what it adds to the residual stream (`after`, as
    in OLMo 2), or both, as in Gemma 3."""

    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance in every norm."""

    bias: bool = True
    """Biases in linear layers and LayerNorms."""

    positions: Literal["learned", "rotary", "none"] = "learned"
    """An embedding of the position in the document, a rotation of queries and keys by the position, or neither."""

    max_positions: int = Field(1024, ge=1, le=LONGEST)
    """Learned positions: the longest document. The other kinds have no limit and ignore this."""

    rotary_base: float = Field(10_000.0, gt=1)
    """Rotary positions: the slowest pair of channels turns by about 1/rotary_base a token."""

    rotary_scaling: RotaryScaling | None = None
    """Rotary positions: the rule by which frequencies were changed for a longer context; None: none was."""

    rotary_share: float = Field(1.0, gt=0, le=1)
    """Rotary positions: the share of a head's channels that turn, the first ones."""

    attention_multiplier: float | None = Field(None, gt=0)
    """What products of queries and keys are multiplied by; None: 1/sqrt(head width)."""

    embedding_multiplier: float = Field(1.0, gt=0)
    """What token embeddings are multiplied by, as in Granite."""

    residual_multiplier: float = Field(1.0, gt=0)
    """What every mixer and feed-forward layer adds to the residual stream is multiplied by."""

    logits_scaling: float = Field(1.0, gt=0)
    """What logits are divided by."""

    logits_cap: float | None = Field(None, gt=0)
    """Logits x become `c tanh(x / c)`, below which they stay, as in Gemma 2. A loss then holds all of them."""

    embedding_norm: bool = False
    """A norm after the token embedding, as in RWKV."""

    tie_embeddings: bool = True
    """Use the token embedding as the head's matrix."""

    head_bias: bool = False
    """A bias of the head, which is then not tied."""

    initialization: Literal["normal", "rwkv7"] = "normal"
    """How embeddings and the head start: normal numbers, or as in RWKV-7 (tiny, and orthogonal)."""

    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of weights at the start."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width} (or set head_width), got {self.heads}")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads must divide the {self.heads} heads, got {self.key_value_heads}")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("head_bias: must be false where tie_embeddings is true")
        return self

    @property
    def hidden_width(self) -> int:
        """Hidden width of the feed-forward layers; 0 where there are none."""
        default = hidden_width(self.feed_forward, self.width)
        return default if self.feed_forward == "none" else self.feed_forward_width or default

    def layer_context(self, layer: int) -> LayerContext:
        """Return what the mixer of block `layer` (from 0) needs to know."""
        return LayerContext(
            width=self.width,
            heads=self.heads,
            key_value_heads=self.key_value_heads or self.heads,
            head_width=self.head_width or self.width // self.heads,
            bias=self.bias,
            rotary=self.positions == "rotary",
            rotary_base=self.rotary_base,
            rotary_scaling=self.rotary_scaling,
            rotary_share=self.rotary_share,
            attention_multiplier=self.attention_multiplier,
            norm_eps=self.norm_eps,
            norm_offset=1.0 if self.norm == "offset-rmsnorm" else 0.0,
            layer=layer,
            layers=self.layers,
        )
