"""Linear attention: a sum of outer products, nothing forgotten and nothing normalised but the output."""

from typing import Literal

from zoo.blocks.heads import HeadConfig, QueryKeyNorm
from zoo.blocks.layer import LayerContext
from zoo.blocks.power_layer import PowerLayer

__all__ = ["Linear", "LinearConfig"]


class LinearConfig(HeadConfig):
    """Options of linear attention."""

    name: Literal["linear"] = "linear"
    query_key_norm: QueryKeyNorm = True


class Linear(PowerLayer):
    """`S_t = S_{t-1} + k_t v_t^T`, `o_t = RMSNorm(q_t S_t / sqrt(K))` per head: power attention at p=1, without a gate.

    Source: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236; the norm in place of a denominator is
    RetNet's.
    """

    def __init__(self, config: LinearConfig, context: LayerContext) -> None:
        super().__init__(config, context, p=1, normalize=False)
