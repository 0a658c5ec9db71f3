"""A recipe: a model, its mixers, its data and its training as one strict data file."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from zoo.config import Config, apply_overrides, load_yaml, override_list
from zoo.errors import ConfigError, nearest
from zoo.limits import MOST_LAYERS
from zoo.mixers import MixerConfig
from zoo.mixers.softmax import SoftmaxConfig
from zoo.recipe.data import DataConfig
from zoo.recipe.evaluation import EvaluationConfig
from zoo.recipe.model import DecoderConfig
from zoo.recipe.task import NamedTask, check_task, task_vocabulary
from zoo.recipe.training import TrainingConfig

__all__ = ["Hybrid", "Recipe", "available_recipes", "load_recipe"]


def _expand_name(value: Any) -> Any:
    """Let `mixer: power` stand for `mixer: {name: power}`."""
    if not isinstance(value, str | Mapping | Config):
        raise ValueError(
            f"must be a mixer's name, such as power, or a mapping with its name and options, got {value!r}"
        )
    return {"name": value} if isinstance(value, str) else value


NamedMixer = Annotated[MixerConfig, BeforeValidator(_expand_name)]


class Hybrid(Config):
    """A second mixer that takes every so many layers from the first."""

    mixer: NamedMixer
    """The mixer of those layers, for example `softmax`."""

    every: int = Field(ge=2, le=MOST_LAYERS)
    """Layers `every`, `2 * every`, ... (counted from 1) have it."""


class Recipe(Config):
    """Everything that determines a run: two equal recipes train the same model on the same data in the same order."""

    name: str
    """How the recipe is called; `runs/NAME` is where it trains by default."""

    description: str = ""
    """One line for `zoo list`."""

    model: DecoderConfig
    mixer: NamedMixer = SoftmaxConfig()
    """A mixer's name, or a mapping of its `name` and options."""

    hybrid: Hybrid | None = None
    mixers: tuple[NamedMixer, ...] | None = None
    """In place of `mixer` and `hybrid`: one for each layer, or for so many that the layers are a repetition of."""

    data: DataConfig = DataConfig()
    task: NamedTask = None
    """A task's kind, or a mapping of its `kind` and options, to train on in place of `data`; None (or `text`): text."""

    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"must be letters, digits, '.', '_' and '-', for it names a folder, got {name!r}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _take_vocabulary(cls, values: Any) -> Any:
        """Give a model whose vocabulary is not stated its task's."""
        model = values.get("model") if isinstance(values, Mapping) else None
        if not isinstance(model, Mapping) or "vocab_size" in model:
            return values
        vocabulary = task_vocabulary(values.get("task"), "")
        return values if vocabulary is None else {**values, "model": {**model, "vocab_size": vocabulary}}

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        model, context_length = self.model, self.training.context_length
        if self.hybrid is not None and self.hybrid.every > model.layers:
            raise ValueError(f"hybrid.every: must be at most model.layers {model.layers}, got {self.hybrid.every}")
        if self.mixers is not None and self.hybrid is not None:
            raise ValueError("hybrid: must be null beside mixers, which say what every layer has")
        if self.mixers is not None and (not self.mixers or model.layers % len(self.mixers)):
            raise ValueError(
                f"mixers: must be one for each of model.layers {model.layers}, or a number that divides it, "
                f"got {len(self.mixers)}"
            )
        if model.positions == "learned" and context_length > model.max_positions:
            raise ValueError(
                f"training.context_length: must be at most model.max_positions {model.max_positions}, "
                f"as positions are learned, got {context_length}"
            )
        longest = max(self.evaluation.lengths, default=0)
        if model.positions == "learned" and longest > model.max_positions:
            raise ValueError(
                f"evaluation.lengths: must be at most model.max_positions {model.max_positions}, as positions are "
                f"learned, got {longest}"
            )
        if self.task is not None:
            check_task(self.task, model, context_length, self.evaluation)
        return self

    @property
    def layer_mixers(self) -> tuple[MixerConfig, ...]:
        """The mixer of each layer."""
        return tuple(self.repeated_mixers[layer % len(self.repeated_mixers)] for layer in range(self.model.layers))

    @property
    def repeated_mixers(self) -> tuple[MixerConfig, ...]:
        """Those of the first layers, which the others repeat."""
        if self.mixers is not None:
            return self.mixers
        return (self.mixer,) if self.hybrid is None else (self.mixer,) * (self.hybrid.every - 1) + (self.hybrid.mixer,)

    @property
    def mixer_names(self) -> str:
        """What mixes over time, in words."""
        repeated = self.repeated_mixers
        (name, _), *others = Counter(mixer.name for mixer in repeated).items()
        return ", ".join([name, *(f"{other} in {count} of {len(repeated)} layers" for other, count in others)])

    def override(self, overrides: Iterable[str]) -> "Recipe":
        """Return the recipe with `key=value` overrides applied; see `zoo.config.apply_overrides`.

        `mixer=power` (or `mixer.name=power`) replaces the mixer by a fresh one, and `mixers` too, `mixer.p=2` sets one
        option; so do `task=mqar` and `task.pairs=8`. With another task's vocabulary, `model.vocab_size` follows unless
        it is set too.

        Raises:
            ConfigError: an override is malformed, names an unknown key or gives an invalid value.
        """
        return Recipe.from_mapping(self._overridden(overrides), "overrides")

    def faults_in(self, overrides: Iterable[str]) -> list[str]:
        """Return everything for which `override` would refuse `overrides`, a line each; nothing where it would not."""
        try:
            return Recipe.faults_of(self._overridden(overrides), "overrides")
        except ConfigError as error:
            return [str(error)]

    def _overridden(self, overrides: Iterable[str]) -> dict[str, Any]:
        # A mixer's options mean nothing to another one, so its name stands for the whole section; a task's kind too.
        normal = [re.sub(r"^((?:hybrid\.)?mixer)\.name=", r"\1=", override) for override in override_list(overrides)]
        normal = [re.sub(r"^task(?:\.kind)?=([a-z]\w*)$", _as_kind, override) for override in normal]
        values = self.model_dump(mode="json")
        if self.mixers is not None and any(override.startswith("mixer=") for override in normal):
            values["mixers"] = None
        values = apply_overrides(values, normal)
        if values["mixers"] is not None and any(override.startswith(("mixer=", "mixer.")) for override in normal):
            raise ConfigError("overrides: mixer: means nothing beside mixers, which say what every layer has")
        if not any(override.startswith(("model=", "model.vocab_size=")) for override in normal):
            vocabulary = task_vocabulary(values["task"], "overrides")
            if vocabulary is not None and vocabulary != (self.task and self.task.vocabulary):
                del values["model"]["vocab_size"]
        return values


def _as_kind(override: re.Match[str]) -> str:
    """Write a task's kind as the mapping that replaces the whole section."""
    return "task=null" if override[1] == "null" else f"task={{kind: {override[1]}}}"


def available_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe that comes with the package by its name, or anyone's by the path of its `.yaml` file.

    Args:
        name_or_path: for example `tiny` or `experiments/mine.yaml`. What ends in .yaml or .yml is a path.
        overrides: `key=value` with dotted keys, for example `mixer=power` or `training.steps=1000`.

    Raises:
        ConfigError: no such recipe or file, a file that is no recipe, or an override that does not fit it.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        names = available_recipes()
        if str(name_or_path) not in names:
            hint = (
                nearest(str(name_or_path), names) or f"; the recipes are {', '.join(names)}, or a path to a .yaml file"
            )
            raise ConfigError(f"unknown recipe {str(name_or_path)!r}{hint}")
        path = _folder() / f"{name_or_path}.yaml"
    return Recipe.from_mapping(load_yaml(path), str(path)).override(overrides)


def _folder() -> Path:
    return Path(str(files("zoo") / "recipes"))
