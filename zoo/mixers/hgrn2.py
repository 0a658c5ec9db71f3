"""HGRN2: linear attention whose keys are what its gates let go of, and whose later layers must keep more."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.in_float32 import in_float32
from zoo.blocks.layer import LayerContext
from zoo.blocks.linear import ResidualLinear, own_part
from zoo.blocks.matrix_state import MatrixStateLayer, Read, resolve_matrix_heads
from zoo.blocks.norms import JoinedRMSNorm
from zoo.blocks.window import Shared
from zoo.config import Config
from zoo.kernels.precision import concatenate
from zoo.limits import MOST, WIDEST_HEAD

__all__ = ["Hgrn2", "Hgrn2Config"]


class Hgrn2Config(Config):
    """Options of HGRN2."""

    name: Literal["hgrn2"] = "hgrn2"

    heads: int | None = Field(None, ge=1, le=MOST)
    """Heads. Where only one of heads and head width is set, the other keeps heads x head width."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of a key and of a value."""


class _NormedOutput(nn.Module):
    """`W RMSNorm(o)` over all heads of `o [..., H, V]` together."""

    def __init__(self, context: LayerContext, width: int) -> None:
        super().__init__()
        self.norm = JoinedRMSNorm(width, context.norm_eps)
        self.projection = ResidualLinear(width, context.width, context.bias)

    def forward(self, o: Tensor, x: Tensor) -> Tensor:
        return self.projection(self.norm(o.flatten(-2)))


class Hgrn2(MatrixStateLayer):
    """`S_t = diag(g_t) S_{t-1} + (1 - g_t) v_t^T` per head, `g_t = c + (1 - c) sigmoid(W_f x_t)` a channel.

    Queries are `SiLU(W_q x_t)`, and the output is `W_o RMSNorm(S_t^T q_t / sqrt(K))` over all heads at once. The least
    gate c of a channel is 0 in the first layer and rises by shares of a whole from layer to layer, at the start to
    `l / L`. Where layer 0 is of this kind, it owns the shares for all such layers; otherwise they stay as they start.

    Source: Qin et al., "HGRN2: Gated Linear RNNs with State Expansion", arXiv 2404.07904.
    """

    def __init__(self, config: Hgrn2Config, context: LayerContext) -> None:
        heads = resolve_matrix_heads(context, config.heads, config.head_width)
        super().__init__(context, heads, convolution=None, corrects=False)
        self.context = context
        self.shares: nn.Parameter | None = None  # logits; the first layer's, of which no other has a use, stands at 0
        if context.layer == 0 and context.layers > 1:
            self.shares = nn.Parameter(torch.zeros(context.layers - 1, heads.keys))
        self.output = _NormedOutput(context, heads.values)

    @in_float32
    def initialize(self, std: float) -> None:
        """Start with equal shares, whatever `std` other weights have."""
        super().initialize(std)
        if self.shares is not None:
            nn.init.zeros_(self.shares)

    def read(self, x: Tensor, mixed: Read, shared: Shared) -> Read:
        logits = mixed.k.to(torch.promote_types(mixed.k.dtype, torch.float32))
        least = self._least_gates(shared, logits)
        if least is None:
            k, log_g = torch.sigmoid(-logits), F.logsigmoid(logits)
        else:
            k = (1 - least) * torch.sigmoid(-logits)
            log_g = torch.log1p(-k)
        return Read(F.silu(mixed.q), k.to(mixed.q.dtype), mixed.v, log_g)

    def _least_gates(self, shared: Shared, logits: Tensor) -> Tensor | float | None:
        """This layer's `[H, K]`, or a number for all of them; None: 0."""
        layer, layers, heads = self.context.layer, self.context.layers, self.heads
        name = f"hgrn2.least_gates.{heads.keys}"
        if self.shares is not None:
            own = own_part(self.shares)
            shares = concatenate((torch.zeros_like(own[:1]), own), 0).to(logits.dtype).softmax(0)
            shared.left[name] = shares[1:].cumsum(0)
        if layer == 0:
            return None
        rows = shared.earlier.get(name)
        return layer / layers if rows is None else rows[layer - 1].view(heads.key, heads.key_width).to(logits.dtype)
