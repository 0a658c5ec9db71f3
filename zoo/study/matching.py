"""Models made equal to another: in parameters, in FLOPs, or in the bytes of their state."""

from collections.abc import Callable

from zoo.accounting import account, match_parameters
from zoo.builder import build
from zoo.errors import ConfigError
from zoo.mixers.sliding_window import SlidingWindowConfig
from zoo.recipe import Recipe
from zoo.recipe.study.config import Match

__all__ = ["match"]

_TOLERANCE = {"flops": 0.01, "state": 0.1}
_WIDEST_HEAD = 256


def match(recipe: Recipe, first: Recipe, how: Match) -> Recipe:
    """Return a recipe that has as much of something as another.

    Args:
        recipe: what may change: the width of its feed-forward layers; for the state, that of its heads, or a window.
        first: what it is to be equal to; both train at the same context length.
        how: what of.

    Raises:
        ConfigError: there is no such recipe.
    """
    if how == "none":
        return recipe
    if how == "flops":
        return _match_flops(recipe, first)
    if how == "state":
        recipe = _match_state(recipe, first)
    return match_parameters(recipe, account(first, ()).parameters.total)


def _match_flops(recipe: Recipe, first: Recipe) -> Recipe:
    """FLOPs grow by the same number with every unit of a feed-forward width, so that two counts give all."""
    target = _flops(first)
    if _differ(_flops(recipe), target) <= _TOLERANCE["flops"] / 2:
        return recipe
    if recipe.model.feed_forward == "none":
        raise ConfigError(
            f"match: {recipe.name} with mixer {recipe.mixer_names} takes {_flops(recipe):,} FLOPs for a sequence, not "
            f"{target:,}, and has no feed-forward layers to make up for it"
        )
    least = _flops(_with_hidden(recipe, 1))
    slope = _flops(_with_hidden(recipe, 2)) - least
    width = max(1, round((target - least) / slope) + 1)
    matched = _with_hidden(recipe, width)
    if _differ(_flops(matched), target) > _TOLERANCE["flops"]:
        raise ConfigError(
            f"match: no feed-forward width gives {recipe.name} with mixer {recipe.mixer_names} {target:,} FLOPs for a "
            f"sequence within 1%; the nearest is {_flops(matched):,}"
        )
    return matched


def _match_state(recipe: Recipe, first: Recipe) -> Recipe:
    target = _state(first)
    if _differ(_state(recipe), target) <= _TOLERANCE["state"] / 2:
        return recipe
    if recipe.mixers is not None:
        matched = recipe
    elif isinstance(recipe.mixer, SlidingWindowConfig):
        matched = _nearest(lambda window: _with_mixer(recipe, window=window), recipe.training.context_length, target)
    elif {"heads", "head_width"} <= set(type(recipe.mixer).model_fields):
        matched = _nearest(lambda width: _with_heads(recipe, width), _WIDEST_HEAD, target)
    else:
        matched = recipe
    if _differ(_state(matched), target) > _TOLERANCE["state"]:
        raise ConfigError(
            f"match: the state of {recipe.name} with mixer {recipe.mixer_names} has {_state(recipe):,} bytes at a "
            f"context of {recipe.training.context_length:,}, and {_state(matched):,} at best, not {target:,} within 10%"
        )
    return matched


def _nearest(make: Callable[[int], Recipe], most: int, target: int) -> Recipe:
    """Return the recipe whose state is nearest to `target`, of those at even sizes, over which it only grows."""
    low, high = 1, max(1, most // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _state(make(2 * middle)) >= target else (middle + 1, high)
    found = [make(2 * half) for half in {max(1, low - 1), low}]
    return min(found, key=lambda recipe: abs(_state(recipe) - target))


def _with_hidden(recipe: Recipe, width: int) -> Recipe:
    return recipe.replace(model=recipe.model.replace(feed_forward_width=width))


def _with_mixer(recipe: Recipe, **options: int) -> Recipe:
    return recipe.replace(mixer=recipe.mixer.replace(**options))


def _with_heads(recipe: Recipe, width: int) -> Recipe:
    heads = getattr(recipe.mixer, "heads", None) or recipe.model.heads
    return _with_mixer(recipe, heads=heads, head_width=width)


def _state(recipe: Recipe) -> int:
    context = recipe.training.context_length
    return account(recipe, (context,)).state_bytes[context]


def _flops(recipe: Recipe) -> int:
    return build(recipe, device="meta").flops(recipe.training.context_length)


def _differ(value: float, target: float) -> float:
    return abs(value - target) / target
