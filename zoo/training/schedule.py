"""The learning rate as a pure function of the step."""

import math

from zoo.recipe.training import TrainingConfig

__all__ = ["learning_rate_at"]


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of optimiser step `step`, counted from 1 to `config.steps`.

    It rises in a straight line to the peak at step `warmup_steps`, then decays to the minimum at the last step.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.schedule == "constant" or config.steps == config.warmup_steps:
        return peak
    minimum = peak / 10 if config.min_learning_rate is None else config.min_learning_rate
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return minimum + (peak - minimum) * remaining
