"""Where studies come from: the package, a file, or a recipe whose mixers are compared."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from zoo.config import load_yaml
from zoo.errors import ConfigError, nearest, refuse_all
from zoo.mixers import mixers as registered_mixers
from zoo.recipe.recipe import available_recipes
from zoo.recipe.study.config import Study

__all__ = ["DEFAULT_MIXERS", "available_studies", "load_study", "mixer_study"]

DEFAULT_MIXERS = ("softmax", "linear", "power", "gated-power")
"""Mixers that `load_study` compares in a recipe when none are named."""


def available_studies() -> list[str]:
    """Return the names of the studies that come with the package, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_study(
    name: str,
    mixers: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    seeds: int | None = None,
    learning_rates: Sequence[float] | None = None,
) -> Study:
    """Return the study that `name` stands for.

    Args:
        name: of a study that comes with the package, the path of a study's file, or the name or path of a recipe, of
            which the study then compares mixers.
        mixers: which, for a recipe, with options as in `power:p=3`; by default softmax, linear, power and gated-power.
        overrides: `key=value` for all variants, after the study's own.
        seeds, learning_rates: in place of the study's own; the rates are for all variants.

    Raises:
        ConfigError: there is no such study, recipe or mixer; a file is not a valid study (`FaultsError` where there is
            more than one reason); or `mixers` is given for a study, which has its own.
    """
    study = _read_study(name)
    if study is None:
        study = mixer_study(name, DEFAULT_MIXERS if mixers is None else mixers)
    elif mixers is not None:
        raise ConfigError(f"mixers: {name!r} is a study, which says itself what it compares; name a recipe instead")
    changes = {"seeds": seeds, "learning_rates": None if learning_rates is None else tuple(learning_rates)}
    return study.overridden(overrides).replace(**{key: value for key, value in changes.items() if value is not None})


def _read_study(name: str) -> Study | None:
    """Return the study in a file or of the package, or None where `name` is a recipe's."""
    if Path(name).suffix in (".yaml", ".yml"):
        values = load_yaml(Path(name))
        # Told apart by what only a recipe has, so that a study with a misspelt key is reported as a study.
        return None if "model" in values else _checked(values, name)
    if name in available_studies():
        path = _folder() / f"{name}.yaml"
        return _checked(load_yaml(path), path.name)
    if name not in available_recipes():
        known = [*available_studies(), *available_recipes()]
        hint = nearest(name, known) or f"; there are {', '.join(known)}, or a path to a .yaml file"
        raise ConfigError(f"unknown study or recipe {name!r}{hint}")
    return None


def _checked(values: Mapping[str, Any], source: str) -> Study:
    """Return the study that a file holds, or refuse it with everything that is wrong with it."""
    refuse_all(Study.faults_of(values, source))
    return Study.from_mapping(values, source)


def _folder() -> Path:
    return Path(str(files("zoo") / "recipes" / "studies"))


def mixer_study(recipe: str, mixers: Sequence[str]) -> Study:
    """Return the study of a recipe with several mixers, each a name, or a name and options as in `power:p=3`.

    Raises:
        ConfigError: there is no such mixer, or what follows it is no option.
    """
    if not mixers:
        raise ConfigError("mixers: at least one is needed")
    variants: dict[str, tuple[str, ...]] = {}
    for spec in mixers:
        mixer, *options = spec.split(":")
        if mixer not in registered_mixers:
            hint = nearest(mixer, registered_mixers) or f"; the mixers are {', '.join(registered_mixers)}"
            raise ConfigError(f"mixers: unknown mixer {mixer!r}{hint}")
        for option in options:
            if not re.fullmatch(r"[a-z_]+=.+", option):
                raise ConfigError(f"mixers: options must be as in {mixer}:key=value, got {option!r} in {spec!r}")
        if mixers.count(spec) > 1:
            raise ConfigError(f"mixers: {spec!r} stands twice")
        variants[" ".join([mixer, *options])] = (f"mixer={mixer}", *(f"mixer.{option}" for option in options))
    return Study(
        name=f"{Path(recipe).stem}-mixers",
        description=f"Mixers of {recipe}: {', '.join(variants)}.",
        recipe=recipe,
        variants=variants,
    )
