"""Gated linear attention: every head lets go of a share of its past that depends on the token."""

from typing import Literal

from zoo.blocks.gate import Retention
from zoo.blocks.heads import HeadConfig, QueryKeyNorm
from zoo.blocks.layer import LayerContext
from zoo.blocks.power_layer import PowerLayer

__all__ = ["GatedLinear", "GatedLinearConfig"]


class GatedLinearConfig(HeadConfig):
    """Options of gated linear attention."""

    name: Literal["gated-linear"] = "gated-linear"
    query_key_norm: QueryKeyNorm = True

    retention: Retention = (0.9, 0.9999)
    """Share of the past that the most forgetful and the most retentive head keep a token at the start of training."""


class GatedLinear(PowerLayer):
    """`S_t = g_t S_{t-1} + k_t v_t^T`, `o_t = RMSNorm(q_t S_t / sqrt(K))` per head, one gate `g_t` in (0, 1) a head.

    Sources: Sun et al., "Retentive Network", arXiv 2307.08621 (there g is constant); Yang et al., "Gated Linear
    Attention Transformers", arXiv 2312.06635 (there one gate a channel).
    """

    def __init__(self, config: GatedLinearConfig, context: LayerContext) -> None:
        super().__init__(config, context, p=1, normalize=False, retention=config.retention)
