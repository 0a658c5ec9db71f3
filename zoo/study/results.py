"""What training came to, as plain data: runs, and variants, which are a run for each learning rate and seed."""

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Self

from pydantic import Field, model_validator

from zoo.config import Config
from zoo.study.statistics import half_interval

__all__ = [
    "Accuracy",
    "Curve",
    "Divergence",
    "EarlyStop",
    "LengthLoss",
    "Machine",
    "PositionLoss",
    "RunSummary",
    "VariantSummary",
]


class Curve(Config):
    """A loss during training: entry `i` of every tuple belongs to the same moment."""

    tokens: tuple[int, ...]
    """Tokens trained on so far."""
    flops: tuple[float, ...]
    """Floating-point operations spent on training so far, forward and backward; a multiply-add is two."""
    seconds: tuple[float, ...]
    """Seconds of training so far, without compilation and evaluation."""
    bits: tuple[float, ...]
    """The loss, in the unit that `StudySummary.unit` names."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = [len(self.tokens), len(self.flops), len(self.seconds), len(self.bits)]
        if len(set(lengths)) > 1:
            raise ValueError(f"tokens, flops, seconds and bits must be equally long, got {lengths}")
        return self

    def at(self, tokens: Sequence[int]) -> "Curve":
        """Return the moments after so many `tokens`, each of which is there."""
        places = [self.tokens.index(each) for each in tokens]
        columns = ("tokens", "flops", "seconds", "bits")
        return Curve(**{name: tuple(getattr(self, name)[place] for place in places) for name in columns})

    @staticmethod
    def each(curves: "Sequence[Curve]", together: Callable[[Sequence[float]], float]) -> "Curve":
        """Return one curve of many: of each moment that all of them have, what `together` makes of their losses.

        Seconds are their mean.
        """
        shared = sorted(set.intersection(*(set(curve.tokens) for curve in curves)))
        curves = [curve.at(shared) for curve in curves]
        return curves[0].replace(
            seconds=tuple(map(fmean, zip(*(curve.seconds for curve in curves), strict=True))),
            bits=tuple(map(together, zip(*(curve.bits for curve in curves), strict=True))),
        )


class Machine(Config):
    """What a variant ran on, without which its seconds mean little."""

    zoo: str
    torch: str
    python: str
    device: str
    """The name of the processor or GPU."""
    threads: int
    """CPU threads that torch computes with."""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"mixer-zoo {self.zoo}, torch {self.torch}, Python {self.python}, {self.device}, {threads}"


class PositionLoss(Config):
    """The loss of tokens that stand from `start` to before `end` in their document."""

    start: int
    end: int
    loss: float
    """Nats per token."""
    tokens: int


class LengthLoss(Config):
    """The loss of text at another context length than that of training."""

    length: int
    loss: float
    """Nats per token."""
    bits_per_byte: float
    tokens: int


class Accuracy(Config):
    """The share of right answers in a task, of some difficulty; None where the task does not have it."""

    length: int
    pairs: int | None = None
    distance: int | None = None
    """Tokens from what was to be remembered to the answer."""
    depth: float | None = None
    accuracy: float
    answers: int


class RunSummary(Config):
    """One finished training of a variant."""

    learning_rate: float
    seed: int
    final_bits: float
    """Validation loss after the last step."""
    choosing_bits: float
    """The same of every second validation batch from the first on: a learning rate is chosen by it."""
    reported_bits: float
    """The same of the other batches: it tells how good the chosen rate is."""
    best_bits: float
    """The lowest validation loss of all evaluations."""
    seconds: float
    """Seconds of training, without compilation and evaluation."""
    tokens_per_second: float
    compile_seconds: float
    graph_breaks: int
    recompiles: int
    validation: Curve
    training: Curve
    machine: Machine
    positions: tuple[PositionLoss, ...] = ()
    lengths: tuple[LengthLoss, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    state_bytes: int | None = None
    """Of the tensors of one sequence's state, as measured."""
    peak_memory_bytes: int | None = None
    """Of training, as measured."""

    @property
    def overall_accuracy(self) -> float | None:
        """The share of all answers that are right; None where nothing was asked."""
        answers = sum(each.answers for each in self.answers)
        return sum(each.accuracy * each.answers for each in self.answers) / answers if answers else None

    @property
    def answers(self) -> tuple[Accuracy, ...]:
        """The accuracies in which every answer counts once: those by distance tell of the same answers again."""
        return tuple(each for each in self.accuracy if each.distance is None) or self.accuracy


class Divergence(Config):
    """A run that ended because its loss, gradient or weights were no longer finite."""

    variant: str
    learning_rate: float
    seed: int
    message: str
    """What training said: step, batch, last checkpoint."""

    def __str__(self) -> str:
        return f"{self.variant} at learning rate {self.learning_rate:g}, seed {self.seed}"


class EarlyStop(Divergence):
    """A run that was stopped early: `message` says after which step, and what was better."""


class VariantSummary(Config):
    """A variant of a study with finished runs. What it came to is that of its best learning rate.

    A rate at which a run diverged or was stopped early is none: `runs` are those at rates that every seed came through;
    while there is none yet, all that are finished.
    """

    name: str
    mixer: str
    overrides: tuple[str, ...]
    """What sets the variant apart from the study's recipe."""
    parameters: int
    feed_forward_width: int
    """After the adjustment that matches the parameters to the first variant's."""
    forward_flops_per_token: float
    training_flops_per_token: float
    state_bytes: tuple[int, ...]
    """Bytes of one sequence's state while decoding, one entry for each of `StudySummary.state_contexts`."""
    tokens: int
    """Tokens that each run trained on."""
    pace_compile_seconds: float = 0.0
    """Of the compiler, before the first run, where the time of a step was measured."""
    runs: tuple[RunSummary, ...] = Field(min_length=1)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rates that were tried, from the lowest on."""
        return tuple(sorted({run.learning_rate for run in self.runs}))

    @property
    def learning_rate(self) -> float:
        """The rate of the lowest mean loss on the validation text that rates are chosen by."""
        return min(self.learning_rates, key=lambda rate: fmean(run.choosing_bits for run in self.at(rate)))

    def at(self, learning_rate: float) -> tuple[RunSummary, ...]:
        """Return the runs at a rate, one for each seed."""
        return tuple(run for run in self.runs if run.learning_rate == learning_rate)

    @property
    def chosen(self) -> tuple[RunSummary, ...]:
        """The runs at the best rate."""
        return self.at(self.learning_rate)

    @property
    def losses(self) -> dict[int, float]:
        """By seed, the validation loss after the last step, on text that the rate was not chosen by."""
        selected = len(self.learning_rates) > 1
        return {run.seed: run.reported_bits if selected else run.final_bits for run in self.chosen}

    @property
    def final_bits(self) -> float:
        """The mean of `losses`."""
        return fmean(self.losses.values())

    @property
    def interval(self) -> float | None:
        """Half of the 95% interval of that mean over seeds; None for one seed."""
        return half_interval(list(self.losses.values()))

    @property
    def accuracies(self) -> dict[int, float]:
        """By seed, the share of all answers that are right; empty where nothing was asked."""
        found = {run.seed: run.overall_accuracy for run in self.chosen}
        return {seed: accuracy for seed, accuracy in found.items() if accuracy is not None}

    @property
    def measured_state(self) -> int | None:
        """Bytes of one sequence's state, as measured; None where no run says."""
        return max((run.state_bytes for run in self.chosen if run.state_bytes is not None), default=None)

    @property
    def peak_memory(self) -> int | None:
        """Bytes of memory that training took at most; None where no run says."""
        return max((run.peak_memory_bytes for run in self.chosen if run.peak_memory_bytes is not None), default=None)

    @property
    def best_bits(self) -> float:
        """The lowest validation loss of all evaluations, on average over seeds."""
        return fmean(run.best_bits for run in self.chosen)

    @property
    def seconds(self) -> float:
        """Seconds of training a run, without compilation and evaluation."""
        return fmean(run.seconds for run in self.chosen)

    @property
    def tokens_per_second(self) -> float:
        return median(run.tokens_per_second for run in self.chosen)

    @property
    def compile_seconds(self) -> float:
        """Of all runs: the same model at another rate or from another seed need not compile again."""
        return self.pace_compile_seconds + sum(run.compile_seconds for run in self.runs)

    @property
    def graph_breaks(self) -> int:
        return max(run.graph_breaks for run in self.runs)

    @property
    def recompiles(self) -> int:
        return max(run.recompiles for run in self.runs)

    @property
    def validation(self) -> Curve:
        """The evaluations of the chosen runs, on average."""
        return Curve.each([run.validation for run in self.chosen], fmean)

    @property
    def validation_range(self) -> tuple[Curve, Curve]:
        """The lowest and the highest of them."""
        curves = [run.validation for run in self.chosen]
        return Curve.each(curves, min), Curve.each(curves, max)

    @property
    def training(self) -> Curve:
        """The training losses of the chosen runs, on average."""
        return Curve.each([run.training for run in self.chosen], fmean)
