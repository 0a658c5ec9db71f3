"""How many steps of a variant a study's budget has room for."""

from functools import lru_cache

from zoo.builder import build
from zoo.errors import ConfigError
from zoo.recipe import Recipe
from zoo.recipe.study import Budget
from zoo.recipe.training import TrainingConfig

__all__ = ["flops_per_step", "steps_within"]


def flops_per_step(recipe: Recipe) -> int:
    """Return the floating-point operations of an optimiser step, counted as training does: three forward passes."""
    training = recipe.training
    # What is asked for again and again, at every look at how far a study is, is counted once for each model.
    alike = recipe.replace(training=TrainingConfig(context_length=training.context_length))
    return 3 * _forward_flops(alike) * training.batch_size * training.accumulate


@lru_cache(maxsize=1024)
def _forward_flops(recipe: Recipe) -> int:
    return build(recipe, device="meta").flops(recipe.training.context_length)


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
