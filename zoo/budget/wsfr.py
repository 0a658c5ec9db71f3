"""The weight-state FLOP ratio (WSFR) by mixer and context, counted from the expressions that run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.budget.counts import Budget, budgets
from zoo.errors import ConfigError, nearest
from zoo.mixers import MixerConfig, mixers
from zoo.recipe import Recipe
from zoo.report.numbers import counted, ratio_text

__all__ = [
    "EXACT_FORMULA",
    "OWN",
    "Ratio",
    "RatioTable",
    "Row",
    "exact_table",
    "mixer_label",
    "source_text",
    "variants",
]

OWN = "recipe"
"""Stands among names of mixers for what the recipe itself has."""

EXACT_FORMULA = (
    "2 FLOPs for every weight of the linear layers and the head, to the mixers' FLOPs for T tokens / T, "
    "both for one token of the forward pass"
)


@dataclass(frozen=True)
class Ratio:
    """One cell: how many FLOPs go to weights for one that goes to the state."""

    context: int
    value: float
    budget: Budget | None = None
    """The counts behind it, where there are any."""
    published: str | None = None
    """The published table's number for this model, mixer and context."""
    source: str = "counted"
    """Where the number comes from, in a few words."""

    @property
    def text(self) -> str:
        """The ratio as people read it."""
        return ratio_text(self.value)


@dataclass(frozen=True)
class Row:
    """One mixer, at every context."""

    label: str
    ratios: tuple[Ratio, ...]

    @property
    def source(self) -> str:
        """Where the numbers come from, in a few words."""
        return source_text(self.ratios)


@dataclass(frozen=True)
class RatioTable:
    """A recipe's ratios under one accounting."""

    recipe: str
    accounting: str
    formula: str
    """In words, for people."""
    notes: tuple[str, ...]
    """Warnings before the numbers are used, a sentence each."""
    contexts: tuple[int, ...]
    rows: tuple[Row, ...]


def exact_table(recipe: Recipe, names: Sequence[str], contexts: Sequence[int]) -> RatioTable:
    """Return the ratios counted from the expressions that run.

    Args:
        recipe: the model.
        names: what takes the place of its mixers; see `variants`.
        contexts: in tokens.

    Raises:
        ConfigError: an unknown mixer or option, or a mixer that does not fit the model.
        InputError: no context, or one below 1.
    """
    rows = []
    for variant in variants(recipe, names):
        cells = tuple(Ratio(each.context, each.ratio, each) for each in budgets(variant, contexts))
        rows.append(Row(mixer_label(variant), cells))
    return RatioTable(recipe.name, "exact", EXACT_FORMULA, _notes(recipe, contexts), tuple(contexts), tuple(rows))


def variants(recipe: Recipe, names: Sequence[str]) -> list[Recipe]:
    """Return the recipe with each of some mixers in every layer, those that are alike once.

    Args:
        recipe: what to change.
        names: of mixers, with options after colons (`power:p=3`); `recipe` stands for the recipe's own, hybrid or not.

    Raises:
        ConfigError: an unknown mixer or option, or a value that does not fit.
    """
    found: list[Recipe] = []
    for name in names:
        kind, *options = name.split(":")
        if kind != OWN and kind not in mixers:
            hint = nearest(kind, (OWN, *mixers))
            raise ConfigError(f"mixers: expected {', '.join((OWN, *mixers))}, was {kind!r}{hint}")
        if kind == OWN and options:
            raise ConfigError(f"mixers: {OWN} takes no options, was {name!r}; its own are set by mixer.KEY=VALUE")
        keys = [option.partition("=")[0].strip() for option in options]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"mixers: expected {key} once, was {name!r}")
        changes = [] if kind == OWN else ["hybrid=null", f"mixer={kind}", *(f"mixer.{option}" for option in options)]
        variant = recipe.override(changes)
        if all(variant.layer_mixers != other.layer_mixers for other in found):
            found.append(variant)
    return found


def mixer_label(recipe: Recipe) -> str:
    """Return a recipe's mixers with their power and what else is not at its default: `power (p=2)`."""
    (name, _), *others = counts = Counter(map(_with_options, recipe.layer_mixers)).most_common()
    return ", ".join(f"{name} in {counted(layers, 'layer')}" for name, layers in counts) if others else name


def source_text(ratios: Sequence[Ratio]) -> str:
    """Say where ratios come from, by context where they come from several places."""
    contexts: dict[str, list[str]] = {}
    for ratio in ratios:
        contexts.setdefault(ratio.source, []).append(f"{ratio.context:,}")
    if len(contexts) == 1:
        return ratios[0].source
    return "; ".join(f"{source} at {', '.join(found)}" for source, found in contexts.items())


def _with_options(mixer: MixerConfig) -> str:
    options = mixer.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    if "p" in type(mixer).model_fields:
        options = {"p": getattr(mixer, "p")} | options  # noqa: B009 (mypy: some configs have none)
    return f"{mixer.name} ({', '.join(f'{key}={value}' for key, value in options.items())})" if options else mixer.name


def _notes(recipe: Recipe, contexts: Sequence[int]) -> tuple[str, ...]:
    model = recipe.model
    if model.positions != "learned" or max(contexts) <= model.max_positions:
        return ()
    return (
        f"{recipe.name} has {model.max_positions:,} learned positions: longer contexts are counted as if it had more, "
        "which costs no FLOPs.",
    )
