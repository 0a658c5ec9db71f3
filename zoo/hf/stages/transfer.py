"""The first stage: what a conversion added learns to give the outputs of the softmax attention that was there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoo.data import Batch, Corpus
from zoo.errors import InputError
from zoo.hf.attention import ConvertedAttention, Watcher, new_parts
from zoo.hf.classes import check_converted
from zoo.hf.stages.loop import StageLoop, seeded, training_only
from zoo.hf.stages.reading import logits_of, perplexity
from zoo.hf.stages.result import StageResult
from zoo.hf.stages.settings import Stage
from zoo.training import ProgressReporter, SilentProgress
from zoo.training.optimizer import autocast, autocast_dtype

__all__ = ["converted_modules", "new_parameters", "transfer"]

TRANSFER = Stage(learning_rate=1e-2)
"""LoLCATs (arXiv 2410.10254) trains what it adds at this rate."""


def transfer(
    model: PreTrainedModel,
    corpus: Corpus,
    stage: Stage = TRANSFER,
    *,
    folder: Path | str | None = None,
    progress: ProgressReporter | None = None,
) -> StageResult:
    """Train what a conversion added (gates, offsets, scales, norms) to follow the softmax attention that was there.

    Both compute from the same queries, keys and values, in the one model, which goes on with the softmax's outputs. So
    layers learn at once and apart, each from inputs as the model had them, and need the memory of one. The loss is the
    squared error of outputs over their square, the mean of heads and layers. All other weights stay as they are.

    The folder gets `transfer/` (checkpoints) and the result in `stages.json`; called again with a model converted
    alike, the stage continues from the newest checkpoint, on a CPU to the same bits.

    Args:
        model: a converted one, with float32 weights, changed in place.
        corpus: of `zoo.data.load_corpus`, with the model's tokenizer. Documents do not see each other.
        stage: length, optimiser and schedule.
        folder: None: nothing is written.
        progress: told how it goes, for example `zoo.training.make_progress("transfer")`.

    Returns:
        Losses, and the perplexity on held-back text before and after, beside that of the softmax attention.

    Raises:
        InputError: the model is not converted, has no new parameters or fewer ids or positions than are asked for.
        CorpusError: the corpus is too short.
        CheckpointError: the folder holds this stage of another model or text, or with other settings.
        DivergenceError: the loss or its gradient is no longer finite.
        Interruption: a signal came; it is a KeyboardInterrupt, and a checkpoint is saved.
    """
    check_converted(model)
    if isinstance(folder, str) and not folder:
        raise InputError("folder: expected the path of a folder, was ''; the current one is '.'")
    dtype = autocast_dtype(stage.training(), model.device)

    def gradients(batch: Batch, share: float) -> Tensor:
        return _gradients(model, batch, share, dtype)

    def teacher(batches: list[Batch]) -> float:
        with watched(model, lambda _own, softmax: softmax()):
            return perplexity(model, batches, dtype)

    with seeded(stage.seed, model.device), training_only(model, new_parameters(model)):
        model.eval()  # no dropout, which would be on what is followed
        return StageLoop(
            "transfer", model, corpus, stage, gradients=gradients, teacher=teacher,
            folder=None if folder is None else Path(folder), progress=progress or SilentProgress(), asked={},
        ).run()  # fmt: skip


def _gradients(model: Any, batch: Batch, share: float, dtype: torch.dtype | None) -> Tensor:
    losses: list[Tensor] = []
    weight = share / len(converted_modules(model))

    def compare(own: Callable[[], Tensor], softmax: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            followed = softmax()
        loss = relative_error(own(), followed)
        (loss * weight).backward()  # at once, so that no more than one layer is in memory
        losses.append(loss.detach())
        return followed

    with watched(model, compare), autocast(dtype, model.device):
        logits_of(model, batch, last=1)  # none are needed
    return torch.stack(losses).mean()


def relative_error(found: Tensor, followed: Tensor) -> Tensor:
    """Return the squared error of outputs `[B, T, H, V]` over their square, the mean of heads, 0-d."""
    dtype = torch.promote_types(followed.dtype, torch.float32)
    found, followed = found.to(dtype), followed.to(dtype)
    error, square = ((x * x).sum((0, 1, 3)) for x in (found - followed, followed))
    return (error / square.clamp(min=torch.finfo(dtype).tiny)).mean()


def converted_modules(model: Any) -> list[ConvertedAttention]:
    """Return the converted attention modules of a model."""
    return [module for module in model.modules() if isinstance(module, ConvertedAttention)]


def new_parameters(model: Any) -> set[str]:
    """Return the names of the parameters that a conversion added."""
    own = {id(p) for module in converted_modules(model) for part in new_parts(module) for p in part.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


@contextmanager
def watched(model: Any, watcher: Watcher) -> Iterator[None]:
    """Let a watcher choose what converted layers give, until the end of the body."""
    modules = converted_modules(model)
    try:
        for module in modules:
            module.watcher = watcher
        yield
    finally:
        for module in modules:
            module.__dict__.pop("watcher", None)
