"""What a study is, as strict data: variants of a recipe, and everything that they have in common."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from zoo.config import Config, flatten, override_list, parse_yaml
from zoo.errors import ConfigError, nearest
from zoo.limits import LONGEST

__all__ = ["TEXT", "Budget", "Measures", "Study", "task_name"]

TEXT: Mapping[str, Any] = {"kind": "text"}
"""The task of a study that names none: the text of the recipe's `data`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,63}")
_RESERVED_ENDINGS = (".yaml", ".json", ".csv", ".png", ".pdf", ".html")


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


def _as_task(value: Any) -> Any:
    """Let `mqar` stand for `{kind: mqar}`."""
    task = {"kind": value} if isinstance(value, str) else value
    if not isinstance(task, Mapping) or not isinstance(task.get("kind"), str):
        raise ValueError(f"must be a task's kind, such as mqar, or a mapping with its kind and options, got {value!r}")
    if task["kind"] == "text" and len(task) > 1:
        raise ValueError(f"text has no options, it is the recipe's data, got {value!r}")
    return dict(task)


def _as_rates(value: Any) -> Any:
    """Take rates for all variants, or by variant rates or one rate."""
    if not isinstance(value, Mapping):
        return _rates(value)
    return {name: _rates(each, f"of variant {name!r} ") for name, each in value.items()}


def _rates(values: Any, whose: str = "") -> tuple[float, ...]:
    given = values if isinstance(values, list | tuple) else [values]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise ValueError(f"{whose}must be numbers above 0, or such by variant, got {value!r}")
        if given.count(value) > 1:
            raise ValueError(f"{whose}{value:g} stands twice")
    return tuple(float(value) for value in given)


def _as_count(value: Any) -> Any:
    """Take 1e9, which YAML reads as a number with a point, for a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_budgets(value: Any) -> Any:
    """Take {seconds: [120, 240]} for a budget of each."""
    if not isinstance(value, Mapping):
        return value
    if len(value) != 1 or not isinstance(next(iter(value.values())), list | tuple):
        raise ValueError(f"must be a list of tokens, flops or seconds, such as {{seconds: [120, 240]}}, got {value!r}")
    ((kind, amounts),) = value.items()
    return tuple({kind: amount} for amount in amounts)


Overrides = Annotated[tuple[str, ...], BeforeValidator(_as_overrides)]
Task = Annotated[dict[str, Any], BeforeValidator(_as_task)]
Rates = Annotated[tuple[float, ...] | dict[str, tuple[float, ...]], BeforeValidator(_as_rates)]
Match = Literal["parameters", "state", "flops", "none"]


class Budget(Config):
    """What every run of a study may spend, in one of three measures; the schedule of its learning rate ends there."""

    tokens: Annotated[int | None, BeforeValidator(_as_count)] = Field(None, ge=1, le=LONGEST)
    """Tokens to train on."""
    flops: float | None = Field(None, gt=0)
    """Floating-point operations of training, forward and backward, by the accounting; a multiply-add is two."""
    seconds: float | None = Field(None, gt=0)
    """Training time, without compilation and evaluation, at the pace that a variant is measured to have at first."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(each is not None for each in (self.tokens, self.flops, self.seconds)) != 1:
            raise ValueError("must be exactly one of tokens, flops and seconds")
        return self

    @property
    def kind(self) -> Literal["tokens", "flops", "seconds"]:
        """What it is counted in."""
        return "tokens" if self.tokens is not None else "flops" if self.flops is not None else "seconds"

    @property
    def folder(self) -> str:
        """What the folder of the runs that have it is called, where others have another one: `seconds-120`."""
        return f"{self.kind}-{getattr(self, self.kind):.12g}"

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens:,} tokens"
        return f"{self.flops:.3g} FLOPs" if self.flops is not None else f"{self.seconds:g} s of training"


class Measures(Config):
    """What is measured of every run after its last step, besides the loss."""

    positions: bool = False
    """The loss by position in the document."""
    lengths: tuple[Annotated[int, Field(ge=1, le=LONGEST)], ...] = ()
    """Loss, or accuracy in a task, at these context lengths too."""


class Study(Config):
    """One recipe with several variants, trained on the same tasks, from the same seeds, with the same budget."""

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
    is the one that the others are made equal to in what `match` says."""
    seeds: int = Field(1, ge=1, le=1000)
    """Runs of each variant: from the recipe's `training.seed`, the one after it, and so on."""
    learning_rates: Rates = ()
    """Rates that each variant is trained at, of which its best counts, or such by variant; none: what its recipe says.
    """
    budget: Budget | None = None
    """What each run may spend; None: the recipe's number of steps."""
    budgets: Annotated[tuple[Budget, ...], BeforeValidator(_as_budgets)] = ()
    """Several in its place, all in the same measure: every run is made once for each, with a schedule of its own."""
    tasks: tuple[Task, ...] = ()
    """What to train on, each on its own: `text`, a task's kind, or a mapping of its `kind` and options."""
    evaluate: Measures = Measures()
    match: Match = "parameters"
    """What all variants have as much of as the first: parameters within 1%; the state at the training context within
    10%, by the width of heads, and then parameters; FLOPs of a token within 1%; or nothing."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = [
            *self._faults_of_names(), *self._faults_of_rates(), *self._faults_of_budgets(), *self._faults_of_tasks()
        ]  # fmt: skip
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults_of_names(self) -> list[str]:
        faults = []
        for kind, name in [("name", self.name), *(("variant", name) for name in self.variants)]:
            if not _NAME.fullmatch(name) or name.endswith((" ", ".")):
                faults.append(f"{kind} {name!r} must be 1 to 64 letters, digits, spaces or ._+=- (it names a folder)")
            elif name.lower().endswith(_RESERVED_ENDINGS):
                faults.append(f"{kind} {name!r} must not end like a file")
        folders = [name.casefold() for name in self.variants]
        for name in self.variants:
            if folders.count(name.casefold()) > 1:
                faults.append(f"variant {name!r} differs from another one only in upper and lower case")
        return faults

    def _faults_of_rates(self) -> list[str]:
        if not isinstance(self.learning_rates, Mapping):
            return []
        unknown = [name for name in self.learning_rates if name not in self.variants]
        return [f"learning_rates: there is no variant {name!r}{nearest(name, self.variants)}" for name in unknown]

    def _faults_of_budgets(self) -> Iterator[str]:
        if self.budgets and self.budget is not None:
            yield "budgets: stand in the place of budget, and there are both"
        if len({budget.kind for budget in self.budgets}) > 1:
            yield "budgets: must all be tokens, flops or seconds, for they are compared with each other"
        for budget in dict.fromkeys(each.folder for each in self.budgets):
            if [each.folder for each in self.budgets].count(budget) > 1:
                yield f"budgets: {budget.replace('-', ' ', 1)} stands twice"

    def _faults_of_tasks(self) -> list[str]:
        names = [task_name(task) for task in self.tasks]
        return [f"tasks: {name!r} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]

    @property
    def each_budget(self) -> tuple[Budget | None, ...]:
        """The budgets; None where runs have the recipe's number of steps."""
        return self.budgets or (self.budget,)

    def rates_of(self, variant: str) -> tuple[float, ...]:
        """Return the rates that the study gives a variant; none: the one of its recipe."""
        rates = self.learning_rates
        return rates.get(variant, ()) if isinstance(rates, Mapping) else rates

    def task_overrides(self, task: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of a recipe that make it one of a task, with what is measured there."""
        chosen = [] if task == TEXT else [f"task={json.dumps(task)}"]
        if self.evaluate.positions and task == TEXT:  # what has no documents has no positions in them
            chosen.append("evaluation.positions=true")
        if self.evaluate.lengths:
            chosen.append(f"evaluation.lengths={json.dumps(self.evaluate.lengths)}")
        return tuple(chosen)

    def overridden(self, overrides: Sequence[str]) -> Self:
        """Return the study with further overrides for all variants."""
        return self.replace(overrides=(*self.overrides, *override_list(overrides)))


def task_name(task: Mapping[str, Any]) -> str:
    """Return what a task is called, on pages and as a folder: its kind and its options."""
    options = [f"{key}={_written(value)}" for key, value in task.items() if key != "kind"]
    return re.sub(r"[^A-Za-z0-9 ._+=-]+", "-", " ".join([task["kind"], *options])).strip("-. ")[:120]


def _written(value: Any) -> str:
    """Write an option such that most of it can stand in a folder's name."""
    return "+".join(map(_written, value)) if isinstance(value, list | tuple) else str(value)
