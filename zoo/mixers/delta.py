"""The delta rule: every token corrects what the state holds for its key, and nothing is forgotten otherwise."""

from typing import Literal

from torch import Tensor, nn

from zoo.blocks.delta_layer import DeltaConfig, DeltaLayer
from zoo.blocks.layer import LayerContext
from zoo.blocks.matrix_state import GatedOutput

__all__ = ["Delta", "DeltaNetConfig"]


class DeltaNetConfig(DeltaConfig):
    """Options of the delta rule."""

    name: Literal["delta"] = "delta"

    output_gate: bool = False
    """Multiply the output by SiLU of a projection of the input."""


class Delta(DeltaLayer):
    """`S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T`, `o_t = RMSNorm(S_t^T q_t / sqrt(K))` per head.

    Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", arXiv 2406.06484
    (DeltaNet).
    """

    def __init__(self, config: DeltaNetConfig, context: LayerContext) -> None:
        super().__init__(config, context)
        gate = nn.Linear(context.width, self.heads.values, context.bias) if config.output_gate else None
        self.output = GatedOutput(context, self.heads, gate)

    def log_gates(self, x: Tensor) -> None:
        return None
