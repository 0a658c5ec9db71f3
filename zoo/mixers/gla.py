"""Gated linear attention with a gate a channel: every key channel lets go of a share that the token sets."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.layer import LayerContext
from zoo.blocks.linear import SharedLinear
from zoo.blocks.matrix_state import GatedOutput, MatrixStateLayer, Read, resolve_matrix_heads
from zoo.blocks.window import Shared
from zoo.config import Config
from zoo.limits import MOST, WIDEST, WIDEST_HEAD

__all__ = ["Gla", "GlaConfig"]

_SLOWER = 16  # log gates are divided by so much, which makes half-lives of tokens into half-lives of tens of tokens


class GlaConfig(Config):
    """Options of gated linear attention."""

    name: Literal["gla"] = "gla"

    heads: int | None = Field(None, ge=1, le=MOST)
    """Heads. Where only one of heads and head width is set, the other keeps heads x head width."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of a key; None: half of the model's."""

    expand: int = Field(2, ge=1, le=MOST)
    """Width of a value over that of a key."""

    gate_rank: int = Field(16, ge=1, le=WIDEST)
    """Rank of the gates' projection."""

    convolution: int | None = Field(None, ge=1, le=MOST)
    """Tokens that a convolution of queries, keys and values sees, with SiLU behind it; None: there is none."""


class Gla(MatrixStateLayer):
    """`S_t = diag(g_t) S_{t-1} + k_t v_t^T` per head, with `g_t = sigmoid(W_2 W_1 x_t + b)^(1/16)` a key channel.

    The output is `W_o (RMSNorm(S_t^T q_t / sqrt(K)) * SiLU(W_z x_t))`.

    Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635.
    """

    def __init__(self, config: GlaConfig, context: LayerContext) -> None:
        heads = resolve_matrix_heads(context, config.heads, config.head_width, expand=config.expand, share=2)
        super().__init__(context, heads, convolution=config.convolution, corrects=False)
        self.gate = nn.Sequential(
            SharedLinear(context.width, config.gate_rank, bias=False), nn.Linear(config.gate_rank, heads.keys)
        )
        self.output = GatedOutput(context, heads, nn.Linear(context.width, heads.values, context.bias))

    def read(self, x: Tensor, mixed: Read, shared: Shared) -> Read:
        logits = self.gate(x).unflatten(-1, (self.heads.key, self.heads.key_width))
        log_g = F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / _SLOWER
        return mixed._replace(log_g=log_g)
