"""The delta rule on a power state: a state of power attention's size that unlearns what it held for a key."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.decay import StepGate
from zoo.blocks.delta_layer import DeltaConfig, DeltaLayer
from zoo.blocks.layer import LayerContext
from zoo.blocks.matrix_state import GatedOutput

__all__ = ["DeltaPower", "DeltaPowerConfig"]


class DeltaPowerConfig(DeltaConfig):
    """Options of the delta rule on a power state."""

    name: Literal["delta-power"] = "delta-power"

    p: int = Field(2, ge=1, le=4)
    """The power of the keys, which sets the size of the state: C(head_width + p - 1, p) rows a head."""

    gated: bool = True
    """Each head also decays as a whole, as in the gated delta rule."""


class DeltaPower(DeltaLayer):
    """`S_t = g_t S_{t-1} + beta_t m(k_t) (v_t - g_t S_{t-1}^T m(k_t))^T` per head; m are the monomials of degree p.

    With `m(q) . m(k) = (q . k)^p`, which is 1 for a query that equals its key, so that there is nothing to scale or to
    divide by. The output is `W_o (RMSNorm(S_t^T m(q_t)) * SiLU(W_z x_t))`.

    Source: the delta rule (Yang et al., arXiv 2406.06484 and 2412.06464) on the state of power attention (Gelada et
    al., arXiv 2507.04239); put together here.
    """

    def __init__(self, config: DeltaPowerConfig, context: LayerContext) -> None:
        super().__init__(config, context, p=config.p, scale=1.0)
        self.steps = nn.Linear(context.width, self.heads.value, bias=False) if config.gated else None
        self.gate = StepGate(self.heads.value, None, decay=(0.0, 16.0)) if config.gated else None
        self.output = GatedOutput(context, self.heads, nn.Linear(context.width, self.heads.values, context.bias))

    def log_gates(self, x: Tensor) -> Tensor | None:
        return None if self.steps is None or self.gate is None else self.gate(self.steps(x))
