"""The gated delta rule: every token corrects what the state holds for its key, and each head decays as a whole."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.decay import StepGate
from zoo.blocks.delta_layer import DeltaConfig, DeltaLayer
from zoo.blocks.layer import LayerContext
from zoo.blocks.matrix_state import GatedOutput
from zoo.limits import MOST

__all__ = ["GatedDelta", "GatedDeltaConfig"]


class GatedDeltaConfig(DeltaConfig):
    """Options of the gated delta rule."""

    name: Literal["gated-delta"] = "gated-delta"

    expand: int = Field(2, ge=1, le=MOST)
    """Width of a value over that of a key."""


class GatedDelta(DeltaLayer):
    """`S_t = (I - beta_t k_t k_t^T) g_t S_{t-1} + beta_t k_t v_t^T` per head, with `log g_t = -A softplus(W x_t + b)`.

    The output is `W_o (RMSNorm(S_t^T q_t / sqrt(K)) * SiLU(W_z x_t))`.

    Source: Yang et al., "Gated Delta Networks", arXiv 2412.06464; with more heads of values in Qwen3-Next.
    """

    def __init__(self, config: GatedDeltaConfig, context: LayerContext) -> None:
        super().__init__(config, context)
        self.steps = nn.Linear(context.width, self.heads.value, bias=False)
        self.gate = StepGate(self.heads.value, None, decay=(0.0, 16.0))
        self.output = GatedOutput(context, self.heads, nn.Linear(context.width, self.heads.values, context.bias))

    def log_gates(self, x: Tensor) -> Tensor:
        log_g: Tensor = self.gate(self.steps(x))
        return log_g
