"""How many steps of a variant a study's budget has room for."""

from zoo.builder import build
from zoo.errors import ConfigError
from zoo.recipe import Recipe
from zoo.recipe.study import Budget

__all__ = ["flops_per_step", "steps_within"]


def flops_per_step(recipe: Recipe) -> int:
    """Return the floating-point operations of an optimiser step, counted as training does: three forward passes."""
    training = recipe.training
    forward = build(recipe, device="meta").flops(training.context_length)
    return 3 * forward * training.batch_size * training.accumulate


def steps_within(budget: Budget, recipe: Recipe) -> int | None:
    """Return the whole steps that a budget has room for; None where it takes a measurement to know.

    Raises:
        ConfigError: not even one.
    """
    if budget.seconds is not None:
        return None
    given: float
    if budget.tokens is not None:
        given, step, unit = budget.tokens, recipe.training.tokens_per_step, "tokens"
    else:
        given, step, unit = budget.flops or 0, flops_per_step(recipe), "flops"
    steps = int(given // step)
    if steps < 1:
        raise ConfigError(f"budget.{unit}: must have room for a step, which takes {step:,}, got {given:,.12g}")
    return steps
