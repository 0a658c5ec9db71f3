"""One optimiser step, one evaluation, and the state that they change."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.blocks.rows import is_in_order
from zoo.data import Batch
from zoo.errors import TrainingError
from zoo.kernels.targets import IGNORED
from zoo.models import Decoder
from zoo.models.block import Block
from zoo.models.head_shares import check_heads
from zoo.models.initialization import draw_seed
from zoo.recipe.training import TrainingConfig
from zoo.training.distributed import Processes
from zoo.training.examples import Examples
from zoo.training.measures import Measures, Scores
from zoo.training.objective import Evaluation, NextTokenLoss, blocks_of
from zoo.training.optimizer import (
    autocast,
    autocast_dtype,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)
from zoo.training.run.checkpoint import Checkpoint
from zoo.training.run.parts import Kinds, kinds_of, read_parts
from zoo.training.spread import communicate_at_the_end, free_gathered, keep_gathered, spread
from zoo.training.state import (
    check_own,
    generator_tensors,
    model_tensors,
    optimizer_tensors,
    own_tensors,
    restore_generators,
    restore_model,
    restore_optimizer,
    restore_own,
    saved_tensors,
)

__all__ = ["Engine"]


class Engine:
    """A model with its loss, optimiser and data. What a step does depends on its number and the state alone.

    Args:
        objective: of a model on the device of `processes`, which is changed in place; compiled here if it is not yet.
        config: how to train.
        examples: what to train and to evaluate on.
        processes: who trains together.

    Raises:
        ConfigError: several processes are to have a layer together, and its heads cannot be shared out so.
        TrainingError: several processes are to have a sequence together, and a layer looks back too far for it.
    """

    def __init__(
        self, objective: NextTokenLoss, config: TrainingConfig, examples: Examples, processes: Processes
    ) -> None:
        model = cast(Decoder, objective.model)
        if processes.group is not None:
            model.share_sequences(processes.group)
            _check_shares(model, config)
        self._objective, self._model = objective, model
        self._config, self._examples, self._processes = config, examples, processes
        self._autocast = autocast_dtype(config, processes.device)
        if config.checkpointing != "none":
            model.checkpoint(config.checkpointing)
        if processes.mesh is not None:
            if processes.mesh.heads is not None:
                check_heads(model, processes.mesh.heads.size())
            gather = getattr(torch, config.parallel.gather)
            torch.manual_seed(config.seed)  # so that the seed drawn is that of a single process, which builds first
            seed = draw_seed()
            spread(model, processes.mesh, processes.device, seed=seed, gather=gather, compiled=bool(config.compile))
            if config.accumulate > 1:
                keep_gathered(model)
        elif config.compile and not objective.is_compiled:
            objective.compile_for(config)
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
            loss = self._loss(self._examples.batch((step - 1) * accumulate + part)) / accumulate
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        norm = clip_gradients(self._model, self._config.clip_norm)
        values = torch.stack([torch.stack(losses).sum(), norm])
        if accept is None or accept(values):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return values

    def evaluate(self) -> Evaluation:
        """Return how good the model is on what is held back."""
        self._model.eval()
        self._modes.add("evaluate")
        evaluation = self._examples.evaluate(self)
        free_gathered(self._model)
        return evaluation

    def measure(self) -> Measures:
        """Return everything that is asked of a trained model."""
        self._model.eval()
        # Layers that are compiled each by itself would compile anew for every length.
        with torch.compiler.set_stance("force_eager") if self._by_layer else nullcontext():
            measures = self._examples.measure(self)
        free_gathered(self._model)
        return measures

    @torch.no_grad()
    def loss(self, batch: Batch) -> Tensor:
        """See `zoo.training.measures.Judge`; each process computes its rows of the batch."""
        return self._processes.mean(self._loss(self._processes.share_of(batch)))

    @torch.no_grad()
    def scores(self, batch: Batch, *, marked: bool) -> Scores:
        """See `zoo.training.measures.Judge`; each process computes its rows of the batch."""
        rows, length = batch.tokens.shape
        if not marked:
            batch = batch._replace(resets=torch.zeros_like(batch.resets))
        padded = self._padded(batch)
        tokens, targets, resets = self._on_device(self._processes.share_of(padded))
        with autocast(self._autocast, self._processes.device):
            scores = self._objective.tokens(tokens, targets, resets if marked or padded is not batch else None)
        losses, hits = (self._processes.join(part.cpu(), rows)[:, :length] for part in scores)
        return Scores(losses.double().numpy(), hits.numpy())

    @property
    def expected_graphs(self) -> int:
        """How many graphs the compiler needs for what was done so far: one for steps, one for evaluations.

        Layers that compile each by itself may or may not share graphs.
        """
        return len(self._modes) * (len(blocks_of(self._model)) if self._by_layer else 1)

    @property
    def _by_layer(self) -> bool:
        """Whether layers are compiled each by itself; gathering their parameters stays outside of graphs."""
        return self._config.compile == "layers" or (self._processes.mesh is not None and self._config.compile)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the state by group and name as it is, not copied: of what is spread over processes, this one's part.

        The state of random numbers is the first process's, which goes for all.
        """
        generators = generator_tensors(self._processes.device) if self._processes.is_main else {}
        return own_tensors(self._model, self._optimizer) | {"generators": generators}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of the whole state, by group and name, on the first process. Every one has to call it."""
        return {
            "model": model_tensors(self._model),
            "optimizer": optimizer_tensors(self._model, self._optimizer),
            "generators": generator_tensors(self._processes.device),
        }

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take the weights alone from a checkpoint of another run, which the first process alone reads.

        Raises:
            CheckpointError: it is of another model, or cannot be read.
        """
        tensors = partial(saved_tensors, checkpoint, "model", self._model)
        restore_model(self._model, tensors, f"training.start_from: {checkpoint.path}", self._processes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the state from a checkpoint: each process its part, where it is in parts and all of them see it.

        Otherwise the first process alone reads it.

        Raises:
            CheckpointError: it is of another model, or cannot be read.
        """
        processes, source, read = self._processes, str(checkpoint.path), partial(saved_tensors, checkpoint)
        # Rows in another order are parts of other processes.
        in_parts = checkpoint.is_in_parts and is_in_order(self._model, checkpoint.rows)
        if processes.mesh is not None and in_parts and not processes.any(not checkpoint.path.is_dir()):
            self._restore_parts(checkpoint)
            return
        restore_model(self._model, partial(read, "model", self._model), source, processes)
        restore_optimizer(self._model, self._optimizer, partial(read, "optimizer", self._model), source, processes)
        generators = processes.from_main(partial(checkpoint.tensors, "generators"))
        restore_generators(processes.device, generators)

    def _restore_parts(self, checkpoint: Checkpoint) -> None:
        processes, folder = self._processes, checkpoint.path
        own = own_tensors(self._model, self._optimizer)

        def check() -> Kinds:
            check_own(own, {group: kinds_of(folder, group) for group in own}, str(folder))
            return kinds_of(folder, "generators")

        generators = {
            name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in processes.from_main(check).items()
        }
        read_parts(folder, own | {"generators": generators}, processes.files)
        restore_own(self._model, self._optimizer, own)
        restore_generators(processes.device, generators)

    def _loss(self, batch: Batch) -> Tensor:
        tokens, targets, resets = self._on_device(batch)
        with self._compiling(), autocast(self._autocast, self._processes.device):
            # Without marked documents there is nothing to forget, and mixers need no mask for it.
            return self._objective(tokens, targets, resets if self._examples.marked else None)

    def _compiling(self) -> AbstractContextManager[object]:
        """Layers of one class have one code, of which the compiler otherwise makes eight graphs and then gives up."""
        if not self._by_layer:
            return nullcontext()
        limit: int = max(torch._dynamo.config.recompile_limit, 2 * len(blocks_of(self._model)))
        return torch._dynamo.config.patch(recompile_limit=limit)

    def _padded(self, batch: Batch) -> Batch:
        """Return a batch that processes can share, with padding, each token a document, behind it where it is short."""
        group, length = self._processes.group, batch.tokens.shape[1]
        if group is None:
            return batch
        missing = group.size * max(-(-length // group.size), self._model.halo) - length
        if missing == 0:
            return batch
        values = (0, IGNORED, True)
        return Batch(*(F.pad(part, (0, missing), value=value) for part, value in zip(batch, values, strict=True)))

    def _on_device(self, batch: Batch) -> Batch:
        return Batch(*(tensor.to(self._processes.device, non_blocking=True) for tensor in batch))


def _check_shares(model: Decoder, config: TrainingConfig) -> None:
    """Check that no layer looks back further than into the share before.

    Raises:
        TrainingError: one does.
    """
    share = config.context_length // config.parallel.context
    for mixer, block in zip(model.mixer_configs, blocks_of(model), strict=True):
        halo = cast(Block, block).halo
        if halo is not None and halo > share:
            raise TrainingError(
                f"training.parallel.context: expected shares of at least {halo} tokens, so far a layer with mixer "
                f"{mixer.name} looks back, got {share}"
            )
