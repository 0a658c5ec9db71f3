"""Costs of a recipe's model: parameters, bytes of state and FLOPs, exact and without allocating anything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from zoo.blocks.mixer import Mixer
from zoo.builder import build, check_state
from zoo.errors import ConfigError, InputError
from zoo.models.decoder import Decoder
from zoo.recipe import Recipe
from zoo.states import any_state, state_bytes

__all__ = ["CONTEXTS", "Accounting", "Parameters", "account", "count_parameters", "layer_mixers", "match_parameters"]

CONTEXTS = (1_024, 4_096, 16_384, 65_536, 1_048_576)
"""Context lengths, in tokens, that costs are stated for by default."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by what they belong to; a tied embedding counts once, under `embedding`."""

    embedding: int
    """Of tokens."""
    positions: int
    """Of learned positions, else 0."""
    mixers: int
    """Projections, gates and norms inside the mixers of all layers."""
    feed_forward: int
    norms: int
    """Before every mixer and feed-forward layer, and before the head."""
    head: int
    """0 where the token embedding serves as the head."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.positions + self.mixers + self.feed_forward + self.norms + self.head


@dataclass(frozen=True)
class Accounting:
    """Costs of one model, by context length in tokens where they depend on it.

    A model with learned positions has entries only for the contexts that its positions reach.
    """

    parameters: Parameters
    state_bytes: Mapping[int, int]
    """Bytes that the state of one sequence takes while decoding, with room for the context."""
    forward_flops_per_token: Mapping[int, float]
    """FLOPs of the forward pass (a multiply-add is 2), the mean over the tokens of one sequence of that length."""
    heads: tuple[tuple[int, int], ...] = ()
    """Heads of the layers' mixers, and how many different keys and values they have; layers that are alike once."""
    refused: str = ""
    """Why no such model is built unless the limit of a state is raised, if it is not."""

    @property
    def training_flops_per_token(self) -> dict[int, float]:
        """FLOPs of forward and backward together, counted as three forward passes."""
        return {context: 3 * flops for context, flops in self.forward_flops_per_token.items()}


def account(recipe: Recipe, contexts: Sequence[int] = CONTEXTS, dtype: torch.dtype = torch.float32) -> Accounting:
    """Return what the model of `recipe` costs.

    Args:
        recipe: built on the meta device, so that its size does not matter.
        contexts: lengths in tokens.
        dtype: of the parameters and of cached keys and values; running sums are float32 whatever this says.

    Raises:
        ConfigError: the mixer does not fit the model.
        InputError: a state has more bytes than can be counted.
    """
    model = build(recipe, device="meta", dtype=dtype)
    limit = recipe.model.max_positions if recipe.model.positions == "learned" else None
    reached = [context for context in contexts if limit is None or context <= limit]
    return Accounting(
        parameters=_count(model),
        state_bytes={context: state_bytes(any_state(model, context)) for context in reached},
        forward_flops_per_token={context: model.flops(context) / context for context in reached},
        heads=tuple(dict.fromkeys(mixer.head_counts for mixer in layer_mixers(model) if mixer.head_counts)),
        refused=_refused(model),
    )


def layer_mixers(model: Decoder) -> list[Mixer]:
    """Return the mixer of each layer; what one is made of, mixers or not, is its own to count."""
    return [cast("Mixer", block.get_submodule("mixer")) for block in model.blocks]


def _refused(model: Decoder) -> str:
    try:
        check_state(model)
    except InputError as error:
        return str(error)
    return ""


def count_parameters(recipe: Recipe) -> Parameters:
    """Return the parameters of a recipe's model by what they belong to."""
    return _count(build(recipe, device="meta"))


def match_parameters(recipe: Recipe, target: int) -> Recipe:
    """Return the recipe with the feed-forward width at which its model has `target` parameters, within 1%.

    A recipe within 0.5% already is returned as it is. Widths that are multiples of 8 suit the hardware and are taken
    where one of them comes within 0.5%.

    Raises:
        ConfigError: no width comes within 1%, because the mixers alone are larger, or there are no such layers.
    """
    counted = count_parameters(recipe)
    if _difference(counted.total, target) <= 0.005:
        return recipe
    if recipe.model.feed_forward == "none":
        # Twice the width that makes up for the difference: enough also where this model comes first, and is the target.
        per_channel = 2 * recipe.model.width * recipe.model.layers
        width = 64 * max(1, round(2 * abs(counted.total - target) / per_channel / 64))
        raise ConfigError(
            f"parameters: {recipe.name} with mixer {recipe.mixer_names} has {counted.total:,}, not {target:,}, and no "
            "feed-forward layers to make up for it; give them to all with model.feed_forward=gelu "
            f"model.feed_forward_width={width}"
        )
    # Parameters grow by the same number with every unit of width, so that two counts give all.
    smallest = count_parameters(_with_width(recipe, 1)).total
    slope = count_parameters(_with_width(recipe, 2)).total - smallest
    widths = [max(1, round(((target - smallest) / slope + 1) / multiple) * multiple) for multiple in (8, 1)]
    for width, tolerance in zip(widths, (0.005, 0.01), strict=True):
        if _difference(smallest + (width - 1) * slope, target) <= tolerance:
            return _with_width(recipe, width)
    raise ConfigError(
        f"parameters: {recipe.name} with mixer {recipe.mixer_names} has {counted.total:,} and no feed-forward width "
        f"gives it {target:,} within 1%; the least is {smallest:,}"
    )


def _with_width(recipe: Recipe, width: int) -> Recipe:
    return recipe.replace(model=recipe.model.replace(feed_forward_width=width))


def _difference(count: int, target: int) -> float:
    return abs(count - target) / target


def _count(model: Decoder) -> Parameters:
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[_owner(name)] += parameter.numel()
    return Parameters(**{field: counts[field] for field in Parameters.__dataclass_fields__})


def _owner(name: str) -> str:
    """Return the field of `Parameters` for a parameter such as `blocks.3.mixer.output.projection.weight`."""
    parts = name.split(".")
    part = parts[2] if parts[0] == "blocks" else parts[0]
    return {
        "token_embedding": "embedding",
        "embedding_norm": "norms",
        "position_embedding": "positions",
        "mixer": "mixers",
        "feed_forward": "feed_forward",
        "mixer_norm": "norms",
        "mixer_after_norm": "norms",
        "feed_forward_norm": "norms",
        "feed_forward_after_norm": "norms",
        "norm": "norms",
        "head": "head",
    }[part]
