"""Projections into heads and out of them, with their options: rotary embedding, query/key norm, output norm."""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.layer import LayerContext
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.norms import HeadNorm, WholeNorm
from zoo.blocks.rotary import RotaryTable, Rotation, rotate, turning_width
from zoo.blocks.rows import OrderedRows, RowOrder
from zoo.config import Config
from zoo.errors import ConfigError
from zoo.limits import MOST, WIDEST_HEAD

__all__ = [
    "HeadConfig",
    "HeadOutput",
    "HeadShape",
    "QueryKeyNorm",
    "QueryKeyValue",
    "resolve_heads",
]

QueryKeyNorm = bool | Literal["whole"]
"""RMSNorm over each head of the queries and of the keys, or over all heads of either together (`whole`), or neither."""


class HeadConfig(Config):
    """Options of every mixer with query, key and value heads; None takes over what the model says."""

    heads: int | None = Field(None, ge=1, le=MOST)
    """Query heads. Where only some of the three sizes are set, the others keep heads x head width and the grouping."""

    key_value_heads: int | None = Field(None, ge=1, le=MOST)
    """Heads of keys and values; each is shared by a group of query heads."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of one head."""

    rotary: bool | None = None
    """Rotate queries and keys by their position."""

    rotary_base: float | None = Field(None, gt=1)
    """Base of the rotation in this layer, which the model's `rotary_scaling` then leaves alone; None: the model's."""

    query_key_norm: QueryKeyNorm = False
    """RMSNorm over each head of the queries and of the keys, before the rotation; `whole`: over all heads together."""

    output_norm: bool | None = None
    """RMSNorm over each head's output; None: only where the mixer has no normaliser of its own."""

    output_gate: bool = False
    """Multiply each head's output, behind its norm, by the sigmoid of a projection of the input."""


class HeadShape(NamedTuple):
    """Counts of query heads and of key/value heads, and the width of one."""

    query: int
    key_value: int
    width: int

    @property
    def row_order(self) -> RowOrder:
        """Of queries, keys and values."""
        return RowOrder(self.key_value, (self.query // self.key_value * self.width, self.width, self.width))

    def share(self, count: int) -> "HeadShape":
        """One of `count` equal shares."""
        return HeadShape(self.query // count, self.key_value // count, self.width)


def resolve_heads(config: HeadConfig, context: LayerContext) -> HeadShape:
    """Return the sizes of the heads that a mixer's config and its model give together.

    Raises:
        ConfigError: a count does not divide what it has to divide.
    """
    total, group = context.heads * context.head_width, context.heads // context.key_value_heads
    if config.heads is not None:
        heads, width = config.heads, config.head_width or _divide(total, config.heads, "heads")
    elif config.head_width is not None:
        heads, width = _divide(total, config.head_width, "head_width"), config.head_width
    else:
        heads, width = context.heads, context.head_width
    key_value = config.key_value_heads or max(1, heads // group)
    if heads % key_value:
        raise ConfigError(f"key_value_heads: must divide the {heads} query heads, got {key_value}")
    return HeadShape(heads, key_value, width)


def _divide(total: int, part: int, name: str) -> int:
    if total % part:
        raise ConfigError(f"{name}: must divide heads x head width of the model, {total}, got {part}")
    return total // part


class QueryKeyValue(OrderedRows):
    """Project `x [B, T, M]` to queries `[B, T, Hq, K]`, keys and values `[B, T, Hk, K]`; norm and rotate as configured.

    The projection's rows stand by key head: those of the queries that share it, of the key, of the value.

    Args:
        config: the mixer's options.
        context: the model's.
        heads: what `resolve_heads` made of both.
    """

    since: ClassVar[int] = 1

    def __init__(self, config: HeadConfig, context: LayerContext, heads: HeadShape) -> None:
        super().__init__()
        self.heads = heads
        self.row_orders = {"projection": heads.row_order}
        rotary = context.rotary if config.rotary is None else config.rotary
        turning = turning_width(heads.width, context.rotary_share)
        scaled = (context.rotary_base, context.rotary_scaling)
        base, scaling = scaled if config.rotary_base is None else (config.rotary_base, None)
        self.rotation = Rotation(turning, base, scaling) if rotary and turning else None
        multiplier = context.attention_multiplier  # of scores, which every mixer divides by sqrt(K) already
        self.query_scale = 1.0 if multiplier is None else multiplier * heads.width**0.5
        self.projection = nn.Linear(context.width, (heads.query + 2 * heads.key_value) * heads.width, context.bias)
        self.query_norm, self.key_norm = (
            _make_query_key_norm(config.query_key_norm, each, context, heads.width)
            for each in (heads.query, heads.key_value)
        )

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`positions` is `[B, T]`, or `[1, T]` where all rows stand at the same place.

        Of one token of each row, `x [B, M]` at `positions [B]`, the heads are `[B, H, K]`.
        """
        if x.dim() > 2:
            return self._heads(x, None if self.rotation is None else self.rotation.table(positions, x.dtype))
        table = None if self.rotation is None else self.rotation.fused_table(positions[:, None], x.dtype)
        q, k, v = self._heads(x[:, None], table)
        return q[:, 0], k[:, 0], v[:, 0]

    def _heads(self, x: Tensor, table: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.projection(x).unflatten(-1, (self.heads.key_value, -1, self.heads.width))
        q, k, v = groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :]
        q, k = self.query_norm(q), self.key_norm(k)
        if self.query_scale != 1:
            q = q * self.query_scale
        return (q, k, v) if table is None else (rotate(q, table), rotate(k, table), v)


def _make_query_key_norm(kind: QueryKeyNorm, heads: int, context: LayerContext, width: int) -> nn.Module:
    if not kind:
        return nn.Identity()
    return (WholeNorm if kind == "whole" else HeadNorm)(heads, width, context.norm_eps, context.norm_offset)


class HeadOutput(nn.Module):
    """Project the heads' outputs `[..., Hq, V]` back to `[..., M]`: an RMSNorm of each head and a gate, if there are.

    The gate is the sigmoid of a projection of the layer's input (Qiu et al., "Gated Attention for Large Language
    Models", arXiv 2505.06708; in Qwen3-Next).

    Args:
        config: the mixer's options.
        context: the model's.
        heads: what `resolve_heads` made of both.
        normalized: whether the mixer has a normaliser, so that there is no norm unless the config says otherwise.
    """

    def __init__(self, config: HeadConfig, context: LayerContext, heads: HeadShape, *, normalized: bool) -> None:
        super().__init__()
        norm = not normalized if config.output_norm is None else config.output_norm
        channels = heads.query * heads.width
        offset = context.norm_offset
        self.norm = HeadNorm(heads.query, heads.width, context.norm_eps, offset) if norm else nn.Identity()
        self.gate = nn.Linear(context.width, channels, context.bias) if config.output_gate else None
        self.projection = ResidualLinear(channels, context.width, context.bias)

    def forward(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.norm(o).flatten(-2)
        return self.projection(y if self.gate is None else y * torch.sigmoid(self.gate(x)))
