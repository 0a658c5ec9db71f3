"""From a study to its runs: every variant built where nothing is allocated, and all that is wrong told at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.accounting import account
from zoo.errors import ZooError, refuse_all
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.study import TEXT, Budget, Study, task_name
from zoo.study.budget import steps_within
from zoo.study.matching import match
from zoo.study.pace import read_pace
from zoo.study.variants import Part, Run, Variant, lasting

__all__ = ["resolve_study"]

_RATE, _STEPS = "training.learning_rate", "training.steps"
_BUDGET = ("context_length", "batch_size", "accumulate", "steps", "evaluation_tokens", "seed")
_OWN = {"name", "description", "model", "mixer", "hybrid", "mixers", "training"}
"""Sections of a recipe that variants may have of their own; of `training` but for what is budget."""


def resolve_study(study: Study, folder: Path | None = None) -> tuple[Part, ...]:
    """Return what a study trains on each of its tasks, every variant checked.

    Args:
        study: which.
        folder: of the study, where it has one: how long a variant's step takes may have been measured there.

    Raises:
        ConfigError: a variant is not a valid recipe, has no model, cannot be made equal to the first in what the study
            matches, or differs from it in data, task, seed or budget, or sets what the study sets; or the budget has no
            room for a step. There is a line for each fault (`FaultsError`), which names the variant.
    """
    load_recipe(study.recipe)  # what is wrong with it is wrong with all
    faults: list[str] = []
    tasks = study.tasks or (TEXT,)
    parts = tuple(part for task in tasks for part in _resolve(study, task, folder, faults))
    refuse_all(faults)
    return parts


def _resolve(study: Study, task: Mapping[str, Any], folder: Path | None, faults: list[str]) -> list[Part]:
    """Return a part of the study for each of its budgets, the same models in all."""
    name = task_name(task)
    part = name if len(study.tasks) > 1 else ""
    variants: dict[Budget | None, list[Variant]] = {budget: [] for budget in study.each_budget}
    first: Recipe | None = None
    for variant, overrides in study.variants.items():
        given = (*study.overrides, *study.task_overrides(task), *overrides)
        found = [*_taken(study, overrides), *load_recipe(study.recipe).faults_in(given)]
        if not found:
            try:
                recipe = _sized(study, load_recipe(study.recipe, given), first)
                found = [*_unbuildable(recipe), *([] if first is None else _incomparable(recipe, first))]
                first = first or recipe
                for budget, own in variants.items():
                    place = "/".join(filter(None, (part, _folder(study, budget), variant)))
                    own.append(_variant(study, budget, (variant, place), recipe, folder))
            except ZooError as error:
                found.append(str(error))
        task_label = f"task {name!r}, " if part else ""
        faults += [f"{task_label}variant {variant!r}: {line}" for line in found]
    return [
        Part(name, "/".join(filter(None, (part, _folder(study, budget)))), tuple(own), budget, len(study.budgets) > 1)
        for budget, own in variants.items()
    ]


def _folder(study: Study, budget: Budget | None) -> str:
    return budget.folder if budget is not None and len(study.budgets) > 1 else ""


def _sized(study: Study, recipe: Recipe, first: Recipe | None) -> Recipe:
    return recipe if first is None else match(recipe, first, study.match)


def _taken(study: Study, overrides: tuple[str, ...]) -> Iterator[str]:
    """Name what a variant sets although the study does."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    if study.learning_rates and _RATE in keys:
        yield f"{_RATE}: must be left to the study's learning_rates"
    if study.each_budget != (None,) and _STEPS in keys | {each.partition("=")[0] for each in study.overrides}:
        yield f"{_STEPS}: must be left to the study's budget"


def _unbuildable(recipe: Recipe) -> list[str]:
    refused = account(recipe, ()).refused
    return [refused] if refused else []


def _incomparable(recipe: Recipe, first: Recipe) -> Iterator[str]:
    """Name every setting that has to be the same in all variants, and is not."""
    own, others = recipe.model_dump(mode="json"), first.model_dump(mode="json")
    for section in own:
        if section in _OWN - {"training"}:
            continue
        values, expected = ({"": each[section]} if not isinstance(each[section], dict) else each[section]
                            for each in (own, others))  # fmt: skip
        for key in _BUDGET if section == "training" else {**expected, **values}:
            if values.get(key) != expected.get(key):
                yield (
                    f"{section}.{key}".rstrip(".") + f" is {values.get(key)!r}, and {expected.get(key)!r} in the first "
                    "variant; data, seed and budget are the same in all variants of a study"
                )


def _variant(
    study: Study, budget: Budget | None, named: tuple[str, str], recipe: Recipe, folder: Path | None
) -> Variant:
    name, place = named
    steps = None if budget is None else steps_within(budget, recipe)
    recipe = recipe if steps is None else lasting(recipe, steps)
    seconds = None if budget is None else budget.seconds
    variant = Variant(
        name=name,
        overrides=study.variants[name],
        recipe=recipe,
        runs=_runs(study, name, place, recipe),
        folder=place,
        seconds=seconds,
        is_paced=seconds is None,
    )
    pace = None if seconds is None or folder is None else read_pace(folder / place)
    return variant if pace is None else variant.at_pace(pace.seconds_per_step)


def _runs(study: Study, name: str, place: str, recipe: Recipe) -> tuple[Run, ...]:
    rates = study.rates_of(name) or (recipe.training.learning_rate,)
    seeds = range(recipe.training.seed, recipe.training.seed + study.seeds)
    recipes = [
        recipe.replace(training=recipe.training.replace(learning_rate=rate, seed=seed))
        for rate in rates
        for seed in seeds
    ]
    if len(recipes) == 1:
        return (Run(place, recipes[0]),)
    return tuple(
        Run(f"{place}/rate-{each.training.learning_rate:g}-seed-{each.training.seed}", each) for each in recipes
    )
