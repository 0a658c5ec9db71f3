"""The registry of mixers: what a recipe's `mixer.name` may be, with its config and its layer."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from zoo.blocks.layer import LayerContext
from zoo.blocks.mixer import Mixer, MixerOutput
from zoo.config import Config
from zoo.mixers.delta import Delta, DeltaNetConfig
from zoo.mixers.delta_power import DeltaPower, DeltaPowerConfig
from zoo.mixers.gated_delta import GatedDelta, GatedDeltaConfig
from zoo.mixers.gated_linear import GatedLinear, GatedLinearConfig
from zoo.mixers.gated_power import GatedPower, GatedPowerConfig
from zoo.mixers.gla import Gla, GlaConfig
from zoo.mixers.hgrn2 import Hgrn2, Hgrn2Config
from zoo.mixers.kda import Kda, KdaConfig
from zoo.mixers.linear import Linear, LinearConfig
from zoo.mixers.mamba2 import Mamba2, Mamba2Config
from zoo.mixers.power import Power, PowerConfig
from zoo.mixers.rwkv7 import Rwkv7, Rwkv7Config
from zoo.mixers.sliding_window import SlidingWindow, SlidingWindowConfig
from zoo.mixers.softmax import Softmax, SoftmaxConfig

__all__ = ["LayerContext", "Mixer", "MixerConfig", "MixerOutput", "MixerSpec", "mixers"]

MixerConfig = Annotated[
    SoftmaxConfig
    | SlidingWindowConfig
    | LinearConfig
    | GatedLinearConfig
    | PowerConfig
    | GatedPowerConfig
    | GlaConfig
    | Hgrn2Config
    | DeltaNetConfig
    | GatedDeltaConfig
    | KdaConfig
    | DeltaPowerConfig
    | Mamba2Config
    | Rwkv7Config,
    Field(discriminator="name"),
]
"""The config of any mixer; `name` says which."""


class MixerSpec(NamedTuple):
    """A mixer's config class and its layer, built by ``spec.build(config, context)``."""

    config: type[Config]
    build: Callable[[Any, LayerContext], Mixer]


mixers: dict[str, MixerSpec] = {
    "softmax": MixerSpec(SoftmaxConfig, Softmax),
    "sliding-window": MixerSpec(SlidingWindowConfig, SlidingWindow),
    "linear": MixerSpec(LinearConfig, Linear),
    "gated-linear": MixerSpec(GatedLinearConfig, GatedLinear),
    "power": MixerSpec(PowerConfig, Power),
    "gated-power": MixerSpec(GatedPowerConfig, GatedPower),
    "gla": MixerSpec(GlaConfig, Gla),
    "hgrn2": MixerSpec(Hgrn2Config, Hgrn2),
    "delta": MixerSpec(DeltaNetConfig, Delta),
    "gated-delta": MixerSpec(GatedDeltaConfig, GatedDelta),
    "kda": MixerSpec(KdaConfig, Kda),
    "delta-power": MixerSpec(DeltaPowerConfig, DeltaPower),
    "mamba2": MixerSpec(Mamba2Config, Mamba2),
    "rwkv7": MixerSpec(Rwkv7Config, Rwkv7),
}
