"""Successive halving of learning rates: those that are hopeless early are not trained to the end.

On request alone, for it is a guess: a rate that learns slowly at first may be the best one at the end. Every rate of a
variant is trained, from the first seed, to a fraction of its steps; the better half, by the validation text that rates
are chosen by, goes on to twice as many, and so on; what is left at the end is trained from the other seeds too.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", arXiv
1502.07943.
"""

from math import ceil, lcm, log2
from pathlib import Path

from zoo.config import load_yaml
from zoo.recipe.training import TrainingConfig
from zoo.report.files import replace_file, writing
from zoo.study.divergence import read_divergence
from zoo.study.results import EarlyStop
from zoo.study.variants import Run, Variant
from zoo.training import read_metrics, run_status
from zoo.training.objective import HALVES

__all__ = ["allowed_steps", "read_stop", "rungs"]

_FILE = "stopped.yaml"


def rungs(training: TrainingConfig, rates: int) -> list[int]:
    """Return the steps after which the worse half of so many rates is given up: evaluations, checkpoints if possible.

    There are as many as it takes for one to be left, each at twice the steps of the one before.
    """
    every = lcm(training.evaluate_every, training.checkpoint_every)
    if every >= training.steps:
        every = training.evaluate_every
    halvings = ceil(log2(rates)) if rates > 1 else 0
    steps = (training.steps / 2 ** (halvings - number) for number in range(halvings))
    found = {every * max(1, round(step / every)) for step in steps}
    return sorted(step for step in found if step < training.steps)


def allowed_steps(variant: Variant, folder: Path) -> dict[str, int]:
    """Return, by name, up to which step each run of a variant may be trained now; what is not named has to wait.

    It follows from what is in the folder of the study alone. Runs at rates that are given up are marked as stopped.

    Raises:
        CheckpointError: metrics are damaged.
        TrainingError: a file cannot be written.
    """
    first = variant.runs[0].seed
    left = [run for run in variant.runs if run.seed == first and read_divergence(folder / run.name) is None]
    for rung in rungs(variant.recipe.training, len({run.learning_rate for run in variant.runs})):
        losses = {run.name: _loss_at(folder / run.name, rung) for run in left}
        early = [run for run in left if losses[run.name] is None]
        if early:
            return {run.name: rung for run in early}
        ranked = sorted(left, key=lambda run: losses[run.name] or 0.0)
        left, hopeless = ranked[: ceil(len(ranked) / 2)], ranked[ceil(len(ranked) / 2) :]
        for run in hopeless:
            better = f"{left[0].learning_rate:g} at {losses[left[0].name]:.3f}"
            _give_up(variant, run, folder, f"after step {rung:,} at {losses[run.name]:.3f}, the best was {better}")
    rates = {run.learning_rate for run in left}
    return {run.name: variant.steps for run in variant.runs if run.learning_rate in rates}


def read_stop(folder: Path) -> EarlyStop | None:
    """Return why a run was stopped early, or None if it was not."""
    path = folder / _FILE
    return EarlyStop.from_mapping(load_yaml(path), str(path)) if path.exists() else None


def _loss_at(folder: Path, step: int) -> float | None:
    for record in read_metrics(folder / "metrics.jsonl"):
        if record["kind"] == "validation" and record["step"] == step:
            return float(record.get(HALVES[0], record["bits_per_byte"]))
    return None


def _give_up(variant: Variant, hopeless: Run, folder: Path, message: str) -> None:
    """Mark the runs of a rate, from every seed, as stopped, but for what is finished."""
    for run in variant.runs:
        place = folder / run.name
        if run.learning_rate != hopeless.learning_rate or read_stop(place) or run_status(place) == "finished":
            continue
        stop = EarlyStop(variant=variant.name, learning_rate=run.learning_rate, seed=run.seed, message=message)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        replace_file(place / _FILE, stop.to_yaml().encode())
