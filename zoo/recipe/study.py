"""Studies: a recipe and, by name, the changes that each variant makes in it."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from zoo.config import Config, flatten, load_yaml, override_list, parse_yaml
from zoo.errors import ConfigError, nearest
from zoo.mixers import mixers as registered_mixers
from zoo.recipe.recipe import available_recipes

__all__ = ["DEFAULT_MIXERS", "Study", "available_studies", "load_study", "study_command"]

DEFAULT_MIXERS = ("softmax", "linear", "power", "gated-power")
"""Mixers that `load_study` compares in a recipe when none are named."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,63}")
_RESERVED_ENDINGS = (".yaml", ".json", ".csv", ".png", ".html")


def _as_overrides(value: Any) -> Any:
    """Take a mapping, nested or with dotted keys, for the overrides that set it."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return tuple(f"{key}={_plain(option)}" for key, option in flatten(value))
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> str:
    """Write a value such that an override reads it back: text as it is where that works, else JSON (which is YAML)."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        return value if isinstance(value, str) and parse_yaml(value, "") == value else text
    except ConfigError:
        return text


Overrides = Annotated[tuple[str, ...], BeforeValidator(_as_overrides)]


class Study(Config):
    """One recipe with several variants, trained on the same data, with the same seed and budget."""

    name: str
    """Of the study, and by default of its folder."""
    description: str = ""
    """One sentence for the page."""
    recipe: str
    """The name or path of the recipe; a path is taken from where the command is run."""
    overrides: Overrides = ()
    """Changes that all variants make in the recipe, as `key=value`, or as a mapping."""
    variants: dict[str, Overrides] = Field(min_length=1)
    """Further changes by variant, as `key=value` or as a mapping such as `{mixer: power, mixer.p: 2}`; the first
    is the one whose number of parameters the others are given."""
    seeds: int = Field(1, ge=1, le=1000)
    """Runs of each variant: from the recipe's `training.seed`, the one after it, and so on."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Rates that each variant is trained at, of which its best counts; none: the rate that its recipe says."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for kind, name in [("name", self.name), *(("variant", name) for name in self.variants)]:
            if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
                raise ValueError(
                    f"{kind} {name!r} must be 1 to 64 letters, digits, spaces or ._+=- (it names a folder)"
                )
            if name.lower().endswith(_RESERVED_ENDINGS):
                raise ValueError(f"{kind} {name!r} must not end like a file")
        for rate in self.learning_rates:
            if self.learning_rates.count(rate) > 1:
                raise ValueError(f"learning_rates: {rate:g} stands twice")
        folders = [name.casefold() for name in self.variants]
        for name in self.variants:
            if folders.count(name.casefold()) > 1:
                raise ValueError(f"variant {name!r} differs from another one only in upper and lower case")
        return self

    def overridden(self, overrides: Sequence[str]) -> Self:
        """Return the study with further overrides for all variants."""
        return self.replace(overrides=(*self.overrides, *override_list(overrides)))


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
        seeds, learning_rates: in place of the study's own.

    Raises:
        ConfigError: there is no such study, recipe or mixer; a file is not a valid study; or `mixers` is given for a
            study, which has its own.
    """
    study = _read_study(name)
    if study is None:
        study = _mixer_study(name, DEFAULT_MIXERS if mixers is None else mixers)
    elif mixers is not None:
        raise ConfigError(f"mixers: {name!r} is a study, which says itself what it compares; name a recipe instead")
    changes = {"seeds": seeds, "learning_rates": None if learning_rates is None else tuple(learning_rates)}
    return study.overridden(overrides).replace(**{key: value for key, value in changes.items() if value is not None})


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
        plain = _mixer_study(study.recipe, mixers).overridden(study.overrides)
        if (options := _options(study, plain)) is not None:
            return shlex.join(["zoo", "ablate", study.recipe, *chosen, *options, *study.overrides])
    return "zoo ablate study.yaml"


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
        options += ["--learning-rates", ",".join(f"{rate!r}" for rate in study.learning_rates)]
    same = plain.replace(seeds=study.seeds, learning_rates=study.learning_rates)
    return options if study == same and (study.learning_rates or not plain.learning_rates) else None


def _read_study(name: str) -> Study | None:
    """Return the study in a file or of the package, or None where `name` is a recipe's."""
    if Path(name).suffix in (".yaml", ".yml"):
        values = load_yaml(Path(name))
        # Told apart by what only a recipe has, so that a study with a misspelt key is reported as a study.
        return None if "model" in values else Study.from_mapping(values, name)
    if name in available_studies():
        path = _folder() / f"{name}.yaml"
        return Study.from_mapping(load_yaml(path), path.name)
    if name not in available_recipes():
        known = [*available_studies(), *available_recipes()]
        hint = nearest(name, known) or f"; there are {', '.join(known)}, or a path to a .yaml file"
        raise ConfigError(f"unknown study or recipe {name!r}{hint}")
    return None


def _folder() -> Path:
    return Path(str(files("zoo") / "recipes" / "studies"))


def _mixer_study(recipe: str, mixers: Sequence[str]) -> Study:
    """The study of a recipe with several mixers, each a name, or a name and options as in `power:p=3`."""
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
