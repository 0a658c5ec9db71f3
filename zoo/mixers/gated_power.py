"""Gated power attention: power attention whose heads let go of a share of their past that depends on the token."""

from typing import Literal

from zoo.blocks.gate import Retention
from zoo.blocks.layer import LayerContext
from zoo.blocks.power_layer import PowerHeadConfig, PowerLayer

__all__ = ["GatedPower", "GatedPowerConfig"]


class GatedPowerConfig(PowerHeadConfig):
    """Options of gated power attention."""

    name: Literal["gated-power"] = "gated-power"

    retention: Retention = (0.9, 0.9999)
    """Share of the past that the most forgetful and the most retentive head keep a token at the start of training."""


class GatedPower(PowerLayer):
    """Power attention with `w_tj = g_{j+1} ... g_t (offset + q_t . k_j / sqrt(K))^p`, one gate in (0, 1) a head and
    token.

    Source: Gelada et al., "Scaling Context Requires Rethinking Attention", arXiv 2507.04239.
    """

    def __init__(self, config: GatedPowerConfig, context: LayerContext) -> None:
        super().__init__(
            config, context, p=config.p, normalize=config.normalize, offset=config.offset, retention=config.retention
        )
