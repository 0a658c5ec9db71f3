"""Kimi Delta Attention: the delta rule on a state of which every key channel decays by itself."""

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.blocks.decay import StepGate
from zoo.blocks.delta_layer import DeltaConfig, DeltaLayer
from zoo.blocks.layer import LayerContext
from zoo.blocks.linear import SharedLinear
from zoo.blocks.matrix_state import GatedOutput

__all__ = ["Kda", "KdaConfig"]


class KdaConfig(DeltaConfig):
    """Options of Kimi Delta Attention."""

    name: Literal["kda"] = "kda"


class Kda(DeltaLayer):
    """`S_t = (I - beta_t k_t k_t^T) diag(g_t) S_{t-1} + beta_t k_t v_t^T` per head, with a gate a key channel.

    `log g_t = -A softplus(W_2 W_1 x_t + b)`, and the output is `W_o (RMSNorm(S_t^T q_t / sqrt(K)) * sigmoid(V_2 V_1
    x_t + c))`. Both ranks are the width of a value.

    Source: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", arXiv 2510.26692.
    """

    def __init__(self, config: KdaConfig, context: LayerContext) -> None:
        super().__init__(config, context)
        heads, rank = self.heads, self.heads.value_width
        self.steps = _low_rank(context.width, rank, heads.value * heads.key_width, bias=False)
        self.gate = StepGate(heads.value, heads.key_width, decay=(1.0, 16.0))
        self.output = GatedOutput(
            context, heads, _low_rank(context.width, rank, heads.values, bias=True), torch.sigmoid
        )

    def log_gates(self, x: Tensor) -> Tensor:
        log_g: Tensor = self.gate(self.steps(x))
        return log_g


def _low_rank(width: int, rank: int, channels: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(SharedLinear(width, rank, bias=False), nn.Linear(rank, channels, bias))
