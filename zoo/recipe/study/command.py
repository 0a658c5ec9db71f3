"""From a study back to the command that runs it."""

import shlex
from collections.abc import Mapping, Sequence

from zoo.errors import ConfigError
from zoo.mixers import mixers as registered_mixers
from zoo.recipe.study.config import Study
from zoo.recipe.study.files import DEFAULT_MIXERS, available_studies, load_study, mixer_study

__all__ = ["study_command"]


def study_command(study: Study) -> str:
    """Return what to type to run a study; one that only a file holds is run from its `study.yaml`."""
    if study.name in available_studies():
        packaged = load_study(study.name)
        own = study.overrides[len(packaged.overrides) :]
        if (options := _options(study, packaged.overridden(own))) is not None:
            return shlex.join(["zoo", "ablate", study.name, *options, *own])
    specs = [_spec(overrides) for overrides in study.variants.values()]
    if None not in specs:
        mixers = [spec for spec in specs if spec is not None]
        chosen = [] if tuple(mixers) == DEFAULT_MIXERS else ["--mixers", ",".join(mixers)]
        plain = _mixer_study(study.recipe, mixers)
        if plain is not None and (options := _options(study, plain.overridden(study.overrides))) is not None:
            return shlex.join(["zoo", "ablate", study.recipe, *chosen, *options, *study.overrides])
    return "zoo ablate study.yaml"


def _mixer_study(recipe: str, mixers: Sequence[str]) -> Study | None:
    """The study of those mixers with their options, or None where these are too long for the name of a variant."""
    try:
        return mixer_study(recipe, mixers)
    except ConfigError:
        return None


def _spec(overrides: Sequence[str]) -> str | None:
    """What to write for a variant that is a mixer with options, such as `power:p=3`; None for anything else."""
    name, *options = overrides or ("",)
    if name.removeprefix("mixer=") not in registered_mixers or any(":" in option for option in options):
        return None
    if not all(option.startswith("mixer.") for option in options):
        return None
    return ":".join([name.removeprefix("mixer="), *(option.removeprefix("mixer.") for option in options)])


def _options(study: Study, plain: Study) -> list[str] | None:
    """The options of the command that make `study` of `plain`, or None where none do."""
    options = []
    if study.seeds != plain.seeds:
        options += ["--seeds", str(study.seeds)]
    if study.learning_rates != plain.learning_rates:
        if isinstance(study.learning_rates, Mapping):
            return None
        options += ["--learning-rates", ",".join(f"{rate!r}" for rate in study.learning_rates)]
    same = plain.replace(seeds=study.seeds, learning_rates=study.learning_rates)
    return options if study == same and (study.learning_rates or not plain.learning_rates) else None
