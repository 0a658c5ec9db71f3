"""The loop that every stage runs in: steps, perplexities, checkpoints, and going on from the newest one."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data import Batch, Batches, Corpus, validation_batches
from zoo.errors import CheckpointError, DivergenceError, InputError, Interruption
from zoo.hf.stages.reading import check_context, fingerprint, perplexity
from zoo.hf.stages.result import StageResult, write_stage
from zoo.hf.stages.settings import Stage
from zoo.report.files import locked
from zoo.training.optimizer import (
    autocast_dtype,
    build_optimizer,
    clip_gradients,
    deterministic_on_cpu,
    learning_rate_at,
    set_learning_rate,
)
from zoo.training.progress import ProgressReporter
from zoo.training.run.checkpoint import Checkpoint, CheckpointStore
from zoo.training.signals import SignalWatch, watching_signals
from zoo.training.state import generator_tensors, restore_generators

__all__ = ["StageLoop", "seeded", "training_only"]


@contextmanager
def training_only(model: nn.Module, chosen: set[str]) -> Iterator[None]:
    """Let the named parameters alone have gradients, and put all as it was afterwards.

    Raises:
        InputError: they are held with too few digits to be trained.
    """
    former = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    for name, parameter in model.named_parameters():
        if name in chosen and parameter.dtype not in (torch.float32, torch.float64):
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"model: expected float32 weights to train, {name} was {dtype}; model.float() gives them (products are "
                "bfloat16 on a GPU all the same)"
            )
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for parameter, required in former:
            parameter.requires_grad_(required)
            parameter.grad = None
        model.train(was_training)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class _Progress:
    """Where a stage stands; a checkpoint holds it."""

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    """Losses since the last line."""
    before: dict[str, float] = field(default_factory=dict)
    """Perplexities of the model and its teacher at the start."""


class StageLoop:
    """One stage of one model. What is to train has gradients already, and all else has none.

    Args:
        name: of the stage.
        model: the converted one, changed in place.
        corpus: what to train on, and what is held back.
        stage: how.
        gradients: adds the gradients of `share` times a batch's loss, and returns the loss, 0-d.
        teacher: measures the teacher's perplexity on batches.
        folder: of checkpoints and results; None: nothing is written.
        progress: told of steps and losses.
        asked: what else the stage was asked for.

    Raises:
        CorpusError: the corpus is too short for one window.
        InputError: its ids or the context are more than the model knows, or nothing is to be trained.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        corpus: Corpus,
        stage: Stage,
        *,
        gradients: Callable[[Batch, float], Tensor],
        teacher: Callable[[list[Batch]], float],
        folder: Path | None,
        progress: ProgressReporter,
        asked: Mapping[str, Any],
    ) -> None:
        check_context(model, stage.context_length)
        known = model.get_input_embeddings().weight.shape[0]
        if corpus.vocab_size > known:
            raise InputError(f"corpus: expected ids below the model's {known:,}, was of {corpus.vocab_size:,} ids")
        self._name, self._model, self._corpus, self._stage = name, model, corpus, stage
        self._gradients, self._teacher, self._progress = gradients, teacher, progress
        self._settings = stage.model_dump(mode="json") | dict(asked)
        self._config = stage.training()
        self._dtype = autocast_dtype(self._config, model.device)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise InputError("model: its conversion has no parameters of its own, so that there is nothing to train")
        self._optimizer = build_optimizer(model, self._config)
        self._batches = Batches(corpus.train, stage.batch_size, stage.context_length, stage.seed)
        self._held_back = validation_batches(
            corpus.validation, stage.batch_size, stage.context_length, stage.evaluation_tokens
        )
        self._folder = folder
        self._store = None if folder is None else CheckpointStore(folder / name)
        self._identity = {} if folder is None else self._identify()
        self._at = _Progress()
        self._saved_step = 0

    def run(self) -> StageResult:
        """Train to the last step and return what the stage came to.

        Raises:
            CheckpointError: the folder holds this stage of another model, corpus or other settings.
            DivergenceError: the loss or its gradient is no longer finite.
            InUseError: another process trains in the folder.
            Interruption: a signal came; the step was finished and a checkpoint saved.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(watching_signals())
            if self._folder is not None and self._store is not None:
                stack.enter_context(locked(self._folder, "is training"))
                self._store.clean()
                self._resume(self._store.newest())
            stack.enter_context(deterministic_on_cpu(self._model.device))
            stack.callback(self._progress.finish)
            self._progress.start(self._at.step, self._stage.steps)
            with signals.holding():
                self._train(signals)
            result = self._result()
            if self._folder is not None:
                write_stage(self._folder, result)
            return result

    def _train(self, signals: SignalWatch) -> None:
        if not self._at.before:
            own = perplexity(self._model, self._held_back, self._dtype)
            self._at.before = {"model": own, "teacher": self._teacher(self._held_back)}
        while self._at.step < self._stage.steps:
            if signals.received is not None:
                if self._at.step > self._saved_step:
                    self._save()
                raise Interruption(signals.received, saved=self._at.step if self._store and self._at.step else None)
            started = time.monotonic()
            self._at.recent.append(self._step(self._at.step + 1))
            self._at.step += 1
            self._at.seconds += time.monotonic() - started
            if self._is_due(self._stage.log_every):
                self._log()
            if self._is_due(self._stage.checkpoint_every):
                self._save()
            self._progress.advance(self._at.step)

    def _is_due(self, every: int) -> bool:
        return self._at.step % every == 0 or self._at.step == self._stage.steps

    def _step(self, step: int) -> float:
        count = self._stage.accumulate
        total = 0.0
        for part in range(count):
            batch = self._batches.batch((step - 1) * count + part)
            total += float(self._gradients(batch, 1 / count)) / count
        norm = float(clip_gradients(self._model, self._stage.clip_norm))
        for what, value in (("loss", total), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                rate = learning_rate_at(self._config, step)
                raise DivergenceError(f"{self._name}, step {step}: the {what} is {value}, at learning rate {rate:g}")
        set_learning_rate(self._optimizer, learning_rate_at(self._config, step))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _log(self) -> None:
        at = self._at
        mean = sum(at.recent) / len(at.recent)
        at.losses.append((at.step, mean))
        at.recent.clear()
        speed = at.step * self._stage.tokens_per_step / max(at.seconds, 1e-9)
        self._progress.metrics({"kind": "train", "step": at.step, "loss": mean, "tokens_per_second": speed})

    def _save(self) -> None:
        if self._store is None:
            return
        state = self._optimizer.state
        tensors = {
            "parameters": {name: p.detach().cpu().contiguous() for name, p in self._parameters.items()},
            "optimizer": {
                f"{name}.{kind}": value.detach().cpu().contiguous()
                for name, parameter in self._parameters.items()
                for kind, value in state[parameter].items()
            },
            "generators": generator_tensors(self._model.device),
        }
        at = self._at
        facts = self._identity | {
            "seconds": at.seconds, "losses": at.losses, "recent": at.recent, "before": at.before,
        }  # fmt: skip
        self._store.save(at.step, tensors, facts)
        self._saved_step = at.step

    def _identify(self) -> dict[str, Any]:
        """What a checkpoint has to agree with, by what an error calls it."""
        shapes = {name: list(p.shape) for name, p in self._parameters.items()}
        return {
            "settings": self._settings,
            "corpus": self._corpus.hash,
            "conversion": self._model.config.zoo,
            "parameters": shapes,
            "weights": fingerprint((name, p) for name, p in self._model.named_parameters() if not p.requires_grad),
        }

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        facts = checkpoint.facts
        for what, now in self._identity.items():
            if facts.get(what) != now:
                raise CheckpointError(
                    f"{checkpoint.path}: holds this stage with other {what}; choose another folder or delete this one"
                )
        values = checkpoint.tensors("parameters")
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])
        numbers = {id(p): i for i, p in enumerate(p for g in self._optimizer.param_groups for p in g["params"])}
        kinds = checkpoint.tensors("optimizer")
        for name, parameter in self._parameters.items():
            own = {k.removeprefix(f"{name}."): v for k, v in kinds.items() if k.rpartition(".")[0] == name}
            state[numbers[id(parameter)]] = own
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": state})
        restore_generators(self._model.device, checkpoint.tensors("generators"))
        losses = [(step, loss) for step, loss in facts["losses"]]
        self._at = _Progress(checkpoint.step, facts["seconds"], losses, facts["recent"], facts["before"])
        self._saved_step = checkpoint.step

    def _result(self) -> StageResult:
        at, stage = self._at, self._stage
        return StageResult(
            stage=self._name,
            steps=at.step,
            tokens=at.step * stage.tokens_per_step,
            seconds=at.seconds,
            trained_parameters=sum(p.numel() for p in self._parameters.values()),
            losses=at.losses,
            perplexity_before=at.before["model"],
            perplexity_after=perplexity(self._model, self._held_back, self._dtype),
            teacher_perplexity=at.before["teacher"],
            evaluation_tokens=sum(batch.targets.numel() for batch in self._held_back),
            corpus_hash=self._corpus.hash,
            settings=self._settings,
        )
