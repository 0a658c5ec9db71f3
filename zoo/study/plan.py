"""What a study will take, before anything of it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.markup import escape

from zoo.accounting import account
from zoo.recipe.study import Study
from zoo.report.numbers import count, counted, duration, hours, size
from zoo.report.tables import plain_table
from zoo.study.collect import is_finished
from zoo.study.memory import training_bytes
from zoo.study.resolve import resolve_study
from zoo.study.variants import Variant
from zoo.training import load_result

__all__ = ["PlannedVariant", "plan_study", "print_plan"]


@dataclass(frozen=True)
class PlannedVariant:
    """What a variant of a study takes in one of its tasks, with one of its budgets."""

    task: str
    """And the budget, where there are several."""
    name: str
    parameters: int
    state_bytes: int
    """Of one sequence at the training context, by the accounting."""
    flops_per_token: float
    """Of training, forward and backward."""
    steps: int | None
    """Of a run; None where the time of a step is to be measured first."""
    tokens: int | None
    runs: int
    memory: int
    """An estimate of what a step takes, in bytes."""
    seconds: float | None
    """Of training, all runs one after the other, without compilation and evaluation; None: nothing tells."""


def plan_study(
    study: Study, folder: Path | None = None, tokens_per_second: float | None = None
) -> tuple[PlannedVariant, ...]:
    """Return what every variant of a study will take, in each of its tasks.

    Args:
        study: checked whole; nothing is allocated and nothing trained.
        folder: of the study, where runs may be finished, whose speed tells that of their variant.
        tokens_per_second: of training, where no finished run tells.

    Raises:
        ConfigError: the study cannot be run; see `resolve_study`.
        CheckpointError: the folder holds runs of another study.
    """
    return tuple(
        _plan(part.label or part.task, variant, folder, tokens_per_second)
        for part in resolve_study(study, folder)
        for variant in part.variants
    )


def _plan(task: str, variant: Variant, folder: Path | None, tokens_per_second: float | None) -> PlannedVariant:
    training = variant.recipe.training
    context = training.context_length
    costs = account(variant.recipe, (context,))
    tokens = variant.steps * training.tokens_per_step if variant.is_paced else None
    speed = _speed(variant, folder) or tokens_per_second
    seconds = variant.seconds or (tokens / speed if tokens and speed else None)
    return PlannedVariant(
        task=task,
        name=variant.name,
        parameters=costs.parameters.total,
        state_bytes=costs.state_bytes[context],
        flops_per_token=costs.training_flops_per_token[context],
        steps=variant.steps if variant.is_paced else None,
        tokens=tokens,
        runs=len(variant.runs),
        memory=training_bytes(variant.recipe),
        seconds=None if seconds is None else seconds * len(variant.runs),
    )


def _speed(variant: Variant, folder: Path | None) -> float | None:
    if folder is None:
        return None
    speeds = [load_result(folder / run.name).tokens_per_second for run in variant.runs if is_finished(run, folder)]
    return fmean(speeds) if speeds else None


def print_plan(study: Study, planned: Sequence[PlannedVariant], console: Console) -> None:
    """Print a row for each variant, and what all take together; within 80 characters where names are short."""
    for task in dict.fromkeys(each.task for each in planned):
        table = plain_table(
            "variant", "para-\nmeters", "state", "FLOPs/\ntoken", "tokens", "steps", "runs", "memory", "time"
        )
        table.columns[0].overflow = "fold"  # of a long name, all is shown
        for each in planned:
            if each.task == task:
                table.add_row(escape(each.name), *_cells(each))
        console.print(f"[bold]{escape(study.name)}[/bold]" + ("" if task == "text" else f": {escape(task)}"))
        console.print(table)
    times = [each.seconds for each in planned]
    runs = counted(sum(each.runs for each in planned), "run")
    total = duration(sum(each or 0 for each in times)) if all(times) else "unknown until a run tells"
    console.print(f"{runs}, training time {total} in one process", highlight=False)
    console.print(
        "[dim]state: one sequence at the training context; memory: an estimate for a step, float32, with all "
        "activations kept; time: all runs, without compilation and evaluation[/dim]",
        highlight=False,
    )


def _cells(each: PlannedVariant) -> list[str]:
    return [
        count(each.parameters),
        size(each.state_bytes),
        count(each.flops_per_token),
        "-" if each.tokens is None else count(each.tokens),
        "-" if each.steps is None else f"{each.steps:,}",
        str(each.runs),
        size(each.memory),
        "-" if each.seconds is None else hours(each.seconds),
    ]
