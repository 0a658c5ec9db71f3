"""The cost of a model as a function of its number of layers, from models of one and of two layers.

The first layer may differ from the others, as it does in models whose layers look back at it; the others are alike.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from zoo.budget.counts import Budget, measure
from zoo.builder import NothingWritten
from zoo.errors import InputError
from zoo.mixers import MixerConfig
from zoo.models.decoder import Decoder
from zoo.recipe.model import DecoderConfig

__all__ = ["LayerCosts", "layer_costs"]


@dataclass(frozen=True)
class LayerCosts:
    """Parameters and costs of a model with one layer and of the same with two."""

    one: tuple[int, Budget]
    two: tuple[int, Budget]
    refused: bool
    """The op makes no state of this size unless its limit is raised."""

    def parameters(self, layers: int) -> int:
        """Return the parameters of a model with so many layers."""
        return self.one[0] + (layers - 1) * (self.two[0] - self.one[0])

    def budget(self, layers: int) -> Budget:
        """Return what a model with so many layers costs."""
        (_, one), (_, two) = self.one, self.two
        more = layers - 1
        return Budget(
            one.context,
            one.weight_flops + more * (two.weight_flops - one.weight_flops),
            one.state_flops + more * (two.state_flops - one.state_flops),
            one.state_bytes + more * (two.state_bytes - one.state_bytes),
        )


@lru_cache(maxsize=1024)
def layer_costs(config: DecoderConfig, mixer: MixerConfig, context: int, dtype: torch.dtype) -> LayerCosts:
    """Return what models with this mixer in every layer cost at `context` tokens; the config's layers do not matter.

    Args:
        config: sizes and style.
        mixer: of every layer.
        context: in tokens.
        dtype: of cached keys and values; running sums are float32.

    Raises:
        ConfigError: the mixer does not fit the model.
    """
    with torch.device("meta"), NothingWritten():
        models = [Decoder(config.replace(layers=layers), [mixer] * layers) for layers in (1, 2)]
    one, two = ((model.num_parameters(), measure(model, context, dtype)) for model in models)
    return LayerCosts(one, two, refused=_refused(models[1], context))


def _refused(model: Decoder, context: int) -> bool:
    try:
        model.init_state(1, max_len=context, device="meta")
    except InputError:
        return True
    return False
