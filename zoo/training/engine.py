"""One optimiser step, one evaluation, and the state that they change."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from zoo.data import Batch, Batches, Corpus, validation_batches
from zoo.errors import TrainingError
from zoo.models import Decoder
from zoo.models.initialization import draw_seed
from zoo.recipe.training import TrainingConfig
from zoo.training.distributed import Processes
from zoo.training.objective import Evaluation, NextTokenLoss, evaluate
from zoo.training.optimizer import (
    autocast,
    autocast_dtype,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)
from zoo.training.run.checkpoint import Checkpoint
from zoo.training.spread import blocks_of, communicate_at_the_end, free_gathered, keep_gathered, spread
from zoo.training.state import (
    generator_tensors,
    model_tensors,
    optimizer_tensors,
    restore_generators,
    restore_model,
    restore_optimizer,
)

__all__ = ["Engine"]


class Engine:
    """A model with its loss, optimiser and data. What a step does depends on its number and the state alone.

    Args:
        objective: of a model on the device of `processes`, which is changed in place; compiled here if it is not yet.
        config: how to train.
        corpus: what to train and to evaluate on.
        processes: who trains together.

    Raises:
        CorpusError: the corpus is too short for one window.
        TrainingError: the batch cannot be shared out evenly.
    """

    def __init__(self, objective: NextTokenLoss, config: TrainingConfig, corpus: Corpus, processes: Processes) -> None:
        if config.batch_size % processes.count:
            raise TrainingError(
                f"training.batch_size: expected a multiple of the {processes.count} processes, got {config.batch_size}"
            )
        model = cast(Decoder, objective.model)
        self._objective, self._model = objective, model
        self._config, self._corpus, self._processes = config, corpus, processes
        self._autocast = autocast_dtype(config, processes.device)
        self._batches = Batches(
            corpus.train,
            config.batch_size,
            config.context_length,
            config.seed,
            rank=processes.rank,
            world_size=processes.count,
        )
        self._validation = validation_batches(
            corpus.validation, config.batch_size, config.context_length, config.evaluation_tokens
        )
        if config.checkpointing != "none":
            model.checkpoint(config.checkpointing)
        if processes.mesh is not None:
            gather = getattr(torch, config.parallel.gather)
            torch.manual_seed(config.seed)  # so that the seed drawn is that of a single process, which builds first
            seed = draw_seed()
            spread(model, processes.mesh, processes.device, seed=seed, gather=gather, compiled=config.compile)
            if config.accumulate > 1:
                keep_gathered(model)
        elif config.compile and not objective.is_compiled:
            # Every batch has one of two shapes, so that sizes need not become variables.
            objective.compile(fullgraph=True, dynamic=False)
        self._optimizer = build_optimizer(model, config)
        self._modes: set[str] = set()

    def step(self, step: int, accept: Callable[[Tensor], bool] | None = None) -> Tensor:
        """Make optimiser step `step`, counted from 1.

        Args:
            step: its number.
            accept: called with what is returned before anything is updated; nothing is where it returns False.

        Returns:
            The mean loss in nats per token and the norm of its gradient before clipping, `[2]` float32, on the device:
            reading them waits for the step to end. Under several processes the loss is that of this one's share.
        """
        set_learning_rate(self._optimizer, learning_rate_at(self._config, step))
        self._model.train()
        self._modes.add("train")
        accumulate = self._config.accumulate
        losses = []
        for part in range(accumulate):
            if self._processes.mesh is not None:
                communicate_at_the_end(self._model, is_last=part == accumulate - 1)
            loss = self._loss(self._batches.batch((step - 1) * accumulate + part)) / accumulate
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        norm = clip_gradients(self._model, self._config.clip_norm)
        values = torch.stack([torch.stack(losses).sum(), norm])
        if accept is None or accept(values):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return values

    def origin(self, step: int) -> str:
        """Return which part of the training data step `step` sees, for error messages."""
        windows = self._config.batch_size * self._config.accumulate
        first = (step - 1) * windows
        epoch, window = divmod(first, self._batches.windows_per_epoch)
        return f"the {windows} windows from number {window} of epoch {epoch} in the order of seed {self._config.seed}"

    def evaluate(self) -> Evaluation:
        """Return the loss on the validation batches."""
        self._model.eval()
        self._modes.add("evaluate")
        evaluation = evaluate(self._shared_loss, self._validation, self._corpus.tokenizer)
        free_gathered(self._model)
        return evaluation

    @property
    def expected_graphs(self) -> int:
        """How many graphs the compiler needs for what was done so far: one for steps, one for evaluations.

        Where the parameters are sharded, the layers compile each by itself, and may or may not share graphs.
        """
        return len(self._modes) * (1 if self._processes.mesh is None else len(blocks_of(self._model)))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the whole state, by file of a checkpoint and name. Every process has to call it."""
        return {
            "model": model_tensors(self._model),
            "optimizer": optimizer_tensors(self._model, self._optimizer),
            "generators": generator_tensors(self._processes.device),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the state from a checkpoint, which the first process alone reads.

        Raises:
            CheckpointError: it is of another model, or cannot be read.
        """
        processes, source = self._processes, str(checkpoint.path)
        restore_model(self._model, partial(checkpoint.tensors, "model"), source, processes)
        restore_optimizer(self._model, self._optimizer, partial(checkpoint.tensors, "optimizer"), source, processes)
        generators = processes.from_main(partial(checkpoint.tensors, "generators"))
        restore_generators(processes.device, generators)

    def _loss(self, batch: Batch) -> Tensor:
        device = self._processes.device
        tokens, targets, resets = (tensor.to(device, non_blocking=True) for tensor in batch)
        # Without marked documents there is nothing to forget, and mixers need no mask for it.
        marked = self._corpus.train.separator is not None
        with autocast(self._autocast, device):
            return self._objective(tokens, targets, resets if marked else None)

    def _shared_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch of which each process computes its rows."""
        return self._processes.mean(self._loss(self._processes.share_of(batch)))
