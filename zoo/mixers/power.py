"""Power attention: linear attention with a state as large as its power p makes it."""

from typing import Literal

from zoo.blocks.layer import LayerContext
from zoo.blocks.power_layer import PowerHeadConfig, PowerLayer

__all__ = ["Power", "PowerConfig"]


class PowerConfig(PowerHeadConfig):
    """Options of power attention."""

    name: Literal["power"] = "power"


class Power(PowerLayer):
    """`o_t = sum_{j <= t} w_tj v_j / sum_{j <= t} w_tj` with `w_tj = (offset + q_t . k_j / sqrt(K))^p`; cost linear
    in T.

    Source: Gelada et al., "Scaling Context Requires Rethinking Attention", arXiv 2507.04239.
    """

    def __init__(self, config: PowerConfig, context: LayerContext) -> None:
        super().__init__(config, context, p=config.p, normalize=config.normalize, offset=config.offset)
