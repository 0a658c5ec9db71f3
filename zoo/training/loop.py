"""The training loop: steps, metrics, evaluations and checkpoints, from wherever the run folder left off."""

import logging
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zoo.compiling.report import CompileReport, CompileWatch, compiling_seconds, naming_compile_errors, watch_anew
from zoo.data import Corpus
from zoo.errors import CheckpointError, CorpusError, DivergenceError, InputError, Interruption, TrainingError
from zoo.models import Decoder
from zoo.recipe import Recipe
from zoo.states import any_state, state_bytes
from zoo.tasks import Task
from zoo.training.distributed import Processes
from zoo.training.engine import Engine
from zoo.training.examples import examples_of
from zoo.training.losses import SpikeWatch, StepLosses
from zoo.training.measures import Measures
from zoo.training.memory import PeakMemory, advice, naming_memory_errors
from zoo.training.objective import HALVES, NextTokenLoss
from zoo.training.optimizer import deterministic_on_cpu, learning_rate_at
from zoo.training.progress import ProgressReporter
from zoo.training.run import RunFolder
from zoo.training.run.checkpoint import Checkpoint
from zoo.training.run.folder import trained
from zoo.training.run.growth import check_same_run
from zoo.training.run.metrics import EventLog, Extent, MetricsLog, check_metrics, read_metrics
from zoo.training.run.parts import first_not_finite
from zoo.training.run.result import TrainingResult, summarise
from zoo.training.saving import Saver
from zoo.training.signals import SignalWatch, watching_signals

__all__ = ["Stopwatch", "Trainer"]

_NOT_FINITE = re.compile(r"\b(nan|inf)\b")
_logger = logging.getLogger(__name__)


class Trainer:
    """One run: a model, its data and its folder.

    Args:
        objective: of a newly initialised model on the device of `processes`, which is changed in place.
        recipe: whose run it is.
        material: what to train and to evaluate on.
        run: the recipe's, or new. It is neither read nor written before `run`.
        processes: who trains together; only the first one writes files and tells `progress`.
        progress: told of every step and line of metrics.

    Raises:
        CorpusError: the corpus is too short for one window of a context.
    """

    def __init__(
        self,
        objective: NextTokenLoss,
        recipe: Recipe,
        material: Corpus | Task,
        run: RunFolder,
        processes: Processes,
        progress: ProgressReporter,
    ) -> None:
        self._recipe, self._config = recipe, recipe.training
        self._run, self._processes, self._progress = run, processes, progress
        sequences = self._config.batch_size * self._config.accumulate
        model = cast(Decoder, objective.model)
        self._flops_per_step = 3 * model.flops(self._config.context_length) * sequences
        self._parameters = model.num_parameters()
        watch = CompileWatch if objective.is_compiled else watch_anew
        self._watch = watch() if self._config.compile else None
        self._examples = examples_of(material, self._config, recipe.evaluation, processes)
        self._state_bytes = state_bytes(any_state(model, self._examples.longest))
        self._engine = Engine(objective, self._config, self._examples, processes)
        self._peak_memory = PeakMemory(processes.device)

        self._step = 0
        self._compiled_before = CompileReport()
        self._stopwatch = Stopwatch()
        self._losses = StepLosses(processes.mean, self._on_spike, self._not_finite)
        self._saved_step = -1  # what the newest checkpoint is of
        self._saver = Saver(run.checkpoints, processes)
        self._metrics_extent: Extent | None = None  # at the step that training goes on from
        self._metrics: MetricsLog | None = None
        self._events: EventLog | None = None
        self._lap_step, self._lap_seconds = 0, 0.0

    def run(self) -> TrainingResult:
        """Train to the last step and return what the run came to.

        Raises:
            CheckpointError: the newest checkpoint is of another recipe, model or corpus; or the metrics up to it are
                damaged.
            DivergenceError: the loss, its gradient or a weight is no longer finite.
            TrainingError: the model does not compile whole, memory does not suffice, a file cannot be written, or
                another process trains here. The checkpoints so far stay whole.
            Interruption: SIGINT (Ctrl-C), SIGTERM or SIGHUP came; the step was finished and a checkpoint saved. After a
                second signal nothing more is done.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(watching_signals())
            self._check_examples()
            start = self._processes.from_main(self._find_start)
            if start is not None:  # before anything is written, for it may be of another model
                self._engine.start_from(start)
            self._processes.from_main(lambda: self._claim(stack))
            self._resume()
            if self._processes.is_main:
                metrics = MetricsLog(self._run.metrics_path, self._saved_step, self._metrics_extent)
                self._metrics = stack.enter_context(closing(metrics))
                self._run.reopen(self._recipe)
                if self._config.tensorboard:
                    self._events = stack.enter_context(closing(EventLog(self._run.events_path, self._saved_step)))
            stack.callback(self._progress.finish)
            self._progress.start(self._step, self._config.steps)
            device = self._processes.device
            stack.enter_context(naming_compile_errors())
            stack.enter_context(naming_memory_errors(advice(self._config)))
            with deterministic_on_cpu(device):
                with signals.holding():
                    self._train(signals)
                compilation, peak_memory = (
                    self._compilation(),
                    self._peak_memory.bytes(),
                )  # of training, not of measures
                with self._naming_divergence("measured loss"):
                    measures = self._engine.measure()
            return self._processes.from_main(lambda: self._finish(measures, compilation, peak_memory))

    def _check_examples(self) -> None:
        """Check that all processes train on the same.

        Raises:
            CorpusError: they do not.
        """
        first = self._processes.from_main(lambda: self._examples.hash)
        if self._processes.any(first != self._examples.hash):
            raise CorpusError(
                f"data.source: expected the same for all {self._processes.count} processes, was another one for some"
            )

    def _claim(self, stack: ExitStack) -> None:
        stack.enter_context(self._run.locked())
        self._run.claim(self._recipe)
        self._run.checkpoints.clean()

    def _train(self, signals: SignalWatch) -> None:
        if self._step == 0:
            self._evaluate()
        while True:
            if self._processes.any(signals.received is not None):
                raise self._interruption(signals.received or signal.SIGTERM)
            if self._step >= self._config.steps:
                return
            self._stopwatch.start()
            self._step += 1
            self._make_step()
            if self._is_due(self._config.log_every):
                self._log()
            if self._is_due(self._config.evaluate_every):
                self._evaluate()
            if self._is_due(self._config.checkpoint_every):
                self._save()
            self._progress.advance(self._step)

    def _interruption(self, number: signal.Signals) -> Interruption:
        if self._step == 0:
            return Interruption(number)
        if self._step != self._saved_step:
            self._save()
        self._saver.finish()
        return Interruption(number, saved=self._step)

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._config.steps

    def _make_step(self) -> None:
        with self._naming_divergence("loss"):
            if self._config.spike == "skip":
                self._engine.step(self._step, self._is_no_spike)
            else:
                self._losses.add(self._step, self._engine.step(self._step))

    @contextmanager
    def _naming_divergence(self, name: str) -> Iterator[None]:
        """Turn what an op refuses to compute with, where it looks at values, into the line that the loss would give.

        Raises:
            TrainingError: values are not finite.
        """
        try:
            yield
        except InputError as error:
            if not _NOT_FINITE.search(str(error)):
                raise
            self._losses.read()  # one before may have been the first
            raise self._not_finite(self._step, name, math.nan) from error

    def _is_no_spike(self, values: Tensor) -> bool:
        self._losses.add(self._step, values)
        return not self._losses.read()

    def _read_losses(self) -> None:
        """Check what the steps so far came to, and end the stopwatch's stretch."""
        self._losses.read()
        self._stopwatch.stop()

    def _on_spike(self, step: int, loss: float, before: float) -> None:
        line = self._describe(step, f"the loss jumped to {loss:.3f} from {before:.3f} on average")
        if self._config.spike == "stop":
            raise TrainingError(f"{line}; {self._kept()}; training.spike=warn goes on")
        if self._processes.is_main:
            _logger.warning("%s%s", line, "; its update is left out" if self._config.spike == "skip" else "")

    def _not_finite(self, step: int, name: str, value: float) -> DivergenceError:
        return DivergenceError(f"{self._describe(step, f'the {name} is {value}')}; {self._kept()}")

    def _describe(self, step: int, what: str) -> str:
        rate = learning_rate_at(self._config, step)
        return f"step {step}: {what}, on {self._examples.origin(step)}, at learning rate {rate:g}"

    def _kept(self) -> str:
        with suppress(TrainingError):  # what ends training is told, not what was to be saved before
            self._saver.finish()
        newest = self._saver.newest
        return "there is no checkpoint yet" if newest is None else f"the last checkpoint is {newest}"

    def _log(self) -> None:
        self._read_losses()
        steps, seconds = self._step - self._lap_step, self._stopwatch.seconds - self._lap_seconds
        self._lap_step, self._lap_seconds = self._step, self._stopwatch.seconds
        self._record(
            "train",
            loss=self._losses.take_mean(),
            learning_rate=learning_rate_at(self._config, self._step),
            gradient_norm=self._losses.gradient_norm,
            tokens_per_second=steps * self._config.tokens_per_step / seconds,
        )

    def _evaluate(self) -> None:
        self._read_losses()
        with self._naming_divergence("validation loss"):
            evaluation = self._engine.evaluate()
        if not math.isfinite(evaluation.loss):
            raise self._not_finite(self._step, "validation loss", evaluation.loss)
        values = dict(zip(HALVES, evaluation.halves, strict=True))
        if evaluation.accuracy is not None:
            values["accuracy"] = evaluation.accuracy
        self._record("validation", loss=evaluation.loss, bits_per_byte=evaluation.bits_per_byte, **values)

    def _record(self, kind: str, **values: float) -> None:
        if self._metrics is None:
            return
        record = {"kind": kind, **self._position(), **values}
        self._metrics.append(record)
        if self._events is not None:
            self._events.append(record)
        self._progress.metrics(record)

    def _position(self) -> dict[str, float]:
        return {
            "step": self._step,
            "tokens": self._step * self._config.tokens_per_step,
            "flops": self._step * self._flops_per_step,
            "seconds": self._stopwatch.seconds,
        }

    def _save(self) -> None:
        self._read_losses()
        if (name := self._processes.first(first_not_finite(self._engine.parts()))) is not None:
            raise DivergenceError(f"{self._describe(self._step, f'{name} is not finite after it')}; {self._kept()}")
        save = self._saver.save if self._step == self._config.steps else self._saver.begin
        save(self._step, self._engine, self._facts)
        self._saved_step = self._step

    def _facts(self) -> dict[str, Any]:
        assert self._metrics is not None
        self._metrics.sync()  # to resume from a checkpoint takes the lines up to it
        return {
            **self._position(),
            "recipe": self._recipe.model_dump(mode="json"),
            "corpus": self._examples.hash,
            "torch": torch.__version__,
            "compilation": asdict(self._compilation()),
            "recent_losses": self._losses.since_line,
            "metrics": self._metrics.extent(),
            "losses_before_spikes": list(self._losses.spikes.recent),
            "peak_memory_bytes": self._peak_memory.bytes(),
        }

    def _find_start(self) -> Checkpoint | None:
        """The checkpoint of another run that this one begins with; None: of none, or this one goes on."""
        source = self._config.start_from
        if source is None or self._run.checkpoints.newest_step() > 0:
            return None
        try:
            recipe, checkpoint = trained(Path(source))
        except CheckpointError as error:
            raise CheckpointError(f"training.start_from: {error}") from None
        if self._recipe.task is None and recipe.data.tokenizer != self._recipe.data.tokenizer:
            raise CheckpointError(
                f"training.start_from: expected a run with data.tokenizer={self._recipe.data.tokenizer}, {source} has "
                f"{recipe.data.tokenizer}"
            )
        return checkpoint

    def _resume(self) -> None:
        checkpoint = self._processes.from_main(self._find_checkpoint)
        if checkpoint is None:
            return
        facts = checkpoint.facts
        self._engine.restore(checkpoint)
        self._step = self._saved_step = checkpoint.step
        self._saver.newest = checkpoint.path
        self._metrics_extent = Extent(*facts["metrics"]) if "metrics" in facts else None
        self._stopwatch = Stopwatch(facts["seconds"])
        self._peak_memory = PeakMemory(self._processes.device, facts.get("peak_memory_bytes"))
        self._losses.since_line = facts["recent_losses"]
        self._losses.spikes = SpikeWatch(facts.get("losses_before_spikes", ()))
        self._lap_step, self._lap_seconds = self._step, self._stopwatch.seconds
        self._compiled_before = CompileReport(**facts["compilation"])

    def _find_checkpoint(self) -> Checkpoint | None:
        checkpoint = self._run.newest_checkpoint()
        if checkpoint is None:
            return None
        check_same_run(self._recipe, checkpoint.facts["recipe"], checkpoint.path, checkpoint.step)
        if (trained_on := checkpoint.facts["corpus"]) != self._examples.hash:
            raise CheckpointError(
                f"{checkpoint.path}: was trained on another corpus (sha256 {trained_on[:12]}, "
                f"now {self._examples.hash[:12]}); choose another folder to start anew"
            )
        return checkpoint

    def _compilation(self) -> CompileReport:
        if self._watch is None:
            return self._compiled_before
        return self._compiled_before + self._watch.report(self._engine.expected_graphs)

    def _finish(self, measures: Measures, compilation: CompileReport, peak_memory_bytes: int | None) -> TrainingResult:
        """Write down, and return, what the run came to."""
        position = self._position()
        assert self._metrics is not None
        check_metrics(self._run.metrics_path, self._metrics.extent())
        result = TrainingResult(
            folder=self._run.path,
            parameters=self._parameters,
            steps=self._step,
            tokens=int(position["tokens"]),
            flops=int(position["flops"]),
            seconds=position["seconds"],
            compile_seconds=compilation.seconds,
            graph_breaks=compilation.graph_breaks,
            recompiles=compilation.recompiles,
            corpus_hash=self._examples.hash,
            state_bytes=self._state_bytes,
            peak_memory_bytes=peak_memory_bytes,
            positions=measures.positions,
            lengths=measures.lengths,
            accuracy=measures.accuracy,
            **summarise(read_metrics(self._run.metrics_path)),
        )
        self._run.checkpoints.prune()
        self._run.finish(result)
        return result


class Stopwatch:
    """Adds up stretches of wall time, without what the compiler took of them.

    Args:
        seconds: what earlier stretches came to.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._started: float | None = None

    def start(self) -> None:
        """Begin a stretch, or go on with the one that is running."""
        if self._started is None:
            self._started = time.perf_counter() - compiling_seconds()

    def stop(self) -> None:
        """End the stretch, if one is running."""
        if self._started is not None:
            self.seconds += time.perf_counter() - compiling_seconds() - self._started
            self._started = None
