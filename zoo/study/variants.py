"""From a study to the recipes of its runs: resolved, checked to be comparable, and of equal size."""

from dataclasses import dataclass

from zoo.accounting import count_parameters, match_parameters
from zoo.errors import ConfigError
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.study import Study

__all__ = ["Run", "Variant", "resolve_variants"]

_RATE = "training.learning_rate"
_BUDGET = ("context_length", "batch_size", "accumulate", "steps", "evaluation_tokens", "seed")


@dataclass(frozen=True)
class Variant:
    """One model to train."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    """With the feed-forward width that gives it as many parameters as the first variant has, within 1%."""
    runs: "tuple[Run, ...]"
    """One for each learning rate and seed, rate by rate."""

    @property
    def mixer(self) -> str:
        """What mixes over time, in words."""
        hybrid = self.recipe.hybrid
        if hybrid is None:
            return self.recipe.mixer.name
        return f"{self.recipe.mixer.name}, {hybrid.mixer.name} in 1 of {hybrid.every} layers"


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


def resolve_variants(study: Study) -> list[Variant]:
    """Return the variants of a study, in its order, every one of them checked.

    Raises:
        ConfigError: a variant is not a valid recipe, cannot be given the first one's number of parameters, or differs
            from it in data, seed or budget, or names a learning rate where the study does. The line names the variant.
    """
    variants: list[Variant] = []
    target = 0
    for name, overrides in study.variants.items():
        try:
            recipe = load_recipe(study.recipe, (*study.overrides, *overrides))
            if variants:
                recipe = match_parameters(recipe, target)
                _check_comparable(recipe, variants[0].recipe)
            else:
                target = count_parameters(recipe).total
            if study.learning_rates and any(override.startswith(f"{_RATE}=") for override in overrides):
                raise ConfigError(f"{_RATE}: must be left to the study's learning_rates, which all variants share")
            variants.append(Variant(name, overrides, recipe, _runs(study, name, recipe)))
        except ConfigError as error:
            raise ConfigError(f"variant {name!r}: {error}") from error
    return variants


def _runs(study: Study, variant: str, recipe: Recipe) -> tuple[Run, ...]:
    rates = study.learning_rates or (recipe.training.learning_rate,)
    seeds = range(recipe.training.seed, recipe.training.seed + study.seeds)
    recipes = [
        recipe.replace(training=recipe.training.replace(learning_rate=rate, seed=seed))
        for rate in rates
        for seed in seeds
    ]
    if len(recipes) == 1:
        return (Run(variant, recipes[0]),)
    return tuple(
        Run(f"{variant}/rate-{each.training.learning_rate:g}-seed-{each.training.seed}", each) for each in recipes
    )


def _check_comparable(recipe: Recipe, first: Recipe) -> None:
    for section, keys in (("data", list(type(recipe.data).model_fields)), ("training", _BUDGET)):
        for key in keys:
            own, others = getattr(getattr(recipe, section), key), getattr(getattr(first, section), key)
            if own != others:
                raise ConfigError(
                    f"{section}.{key} is {own!r}, and {others!r} in the first variant; data, seed and budget are the "
                    "same in all variants of a study"
                )
