"""What a study trains, resolved: its tasks, the variants of each and their runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from zoo.errors import ConfigError
from zoo.recipe import Recipe
from zoo.recipe.study import Budget

__all__ = ["Part", "Run", "Variant", "lasting", "only_runs", "variant_by_variant"]


@dataclass(frozen=True)
class Run:
    """One training of a variant."""

    name: str
    """The run's folder, from the study's on: the variant's own where it has one run."""
    recipe: Recipe

    @property
    def learning_rate(self) -> float:
        return self.recipe.training.learning_rate

    @property
    def seed(self) -> int:
        return self.recipe.training.seed


@dataclass(frozen=True)
class Variant:
    """One model to train."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    """With the sizes that make it equal to the first variant in what the study matches, and with its own steps."""
    runs: tuple[Run, ...]
    """One for each learning rate and seed, rate by rate."""
    folder: str
    """From the study's on: where its runs are."""
    seconds: float | None = None
    """The budget of a run, where that is counted in seconds."""
    is_paced: bool = True
    """False where the number of steps is not known yet, for a step's time was not measured."""

    @property
    def mixer(self) -> str:
        """What mixes over time, in words."""
        return self.recipe.mixer_names

    @property
    def steps(self) -> int:
        """Optimiser steps of each run; of a variant that is not paced, a guess."""
        return self.recipe.training.steps

    def at_pace(self, seconds_per_step: float) -> "Variant":
        """Return the variant with as many steps as its budget of seconds has room for, at least one."""
        steps = max(1, round((self.seconds or 0) / seconds_per_step))
        runs = tuple(replace(run, recipe=lasting(run.recipe, steps)) for run in self.runs)
        return replace(self, recipe=lasting(self.recipe, steps), runs=runs, is_paced=True)


@dataclass(frozen=True)
class Part:
    """A study on one of its tasks: what is compared with each other."""

    task: str
    folder: str
    """From the study's on, empty where it has one task."""
    variants: tuple[Variant, ...]
    budget: Budget | None = None
    """What each run may spend; None: the recipe's number of steps."""
    is_one_of_budgets: bool = False
    """Whether the study trains the same with other budgets too."""

    @property
    def is_text(self) -> bool:
        return self.task == "text"

    @property
    def label(self) -> str:
        """What tells the part from the study's others, in words; empty for text without other budgets."""
        words = [] if self.is_text else [self.task]
        return ", ".join([*words, str(self.budget)] if self.is_one_of_budgets else words)


def only_runs(parts: Sequence[Part], patterns: Sequence[str]) -> tuple[Part, ...]:
    """Return the parts with the runs alone whose folder is like one of the patterns, such as `seconds-120/*`.

    Raises:
        ConfigError: there is no such run.
    """
    names = [run.name for part in parts for variant in part.variants for run in variant.runs]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"only: no run is like {pattern!r}; there are {', '.join(names[:3])}, ...")

    def some(variant: Variant) -> Variant:
        chosen = tuple(run for run in variant.runs if any(fnmatchcase(run.name, pattern) for pattern in patterns))
        return replace(variant, runs=chosen)

    return tuple(
        replace(part, variants=tuple(variant for variant in map(some, part.variants) if variant.runs)) for part in parts
    )


def variant_by_variant(parts: Sequence[Part]) -> list[tuple[Part, Variant]]:
    """Return what is to be trained, task by task; each variant with all its budgets at once, for it compiles once."""
    found = [(part, variant) for part in parts for variant in part.variants]
    tasks = list(dict.fromkeys(part.task for part in parts))
    names = list(dict.fromkeys(variant.name for _, variant in found))
    return sorted(found, key=lambda each: (tasks.index(each[0].task), names.index(each[1].name)))


def lasting(recipe: Recipe, steps: int) -> Recipe:
    """Return a recipe of another length: the schedule ends with its last step, and has the same share of warm-up."""
    training = recipe.training
    warmup = training.warmup_steps * steps // training.steps
    # The warm-up first: it may not be longer than the run at any moment.
    return recipe.replace(training=training.replace(warmup_steps=warmup, steps=steps))
