"""The second stage: a converted model learns to predict what the model before it predicts."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Conv1D, PreTrainedModel

from zoo.data import Batch, Corpus
from zoo.errors import ConfigError, InputError
from zoo.hf.classes import check_converted
from zoo.hf.stages.loop import StageLoop, seeded, training_only
from zoo.hf.stages.reading import fingerprint, logits_of, perplexity
from zoo.hf.stages.result import StageResult
from zoo.hf.stages.settings import Stage
from zoo.hf.stages.transfer import converted_modules, new_parameters
from zoo.training import ProgressReporter, SilentProgress
from zoo.training.optimizer import autocast, autocast_dtype

__all__ = ["Trained", "distill"]

Trained = Literal["attention", "lora", "all"]

DISTILL = Stage(learning_rate=1e-4)
_RANK = 8  # of adapters, with LoLCATs (arXiv 2410.10254)


def distill(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    corpus: Corpus,
    stage: Stage = DISTILL,
    *,
    train: Trained = "attention",
    folder: Path | str | None = None,
    progress: ProgressReporter | None = None,
) -> StageResult:
    """Train a converted model to predict what a teacher predicts, token by token.

    The loss is the Kullback-Leibler divergence of the model's next-token distribution from the teacher's, in nats per
    token. The folder gets `distill/` (checkpoints) and the result in `stages.json`, as with `transfer`.

    Args:
        model: a converted one, with float32 weights, changed in place.
        teacher: most often the model before it was converted; any dtype. It stays as it is.
        corpus: of `zoo.data.load_corpus`, with the tokenizer of both. Documents do not see each other.
        stage: length, optimiser and schedule.
        train: "attention", all parameters of the converted attention modules; "lora", what the conversion added and
            adapters of rank 8 on the linear layers of those modules, merged in the end, which needs peft; or "all".
        folder: None: nothing is written.
        progress: told how it goes, for example `zoo.training.make_progress("distill")`.

    Returns:
        Losses, and the perplexity on held-back text before and after, beside the teacher's.

    Raises:
        InputError: the model is not converted, shares weights with the teacher or has another vocabulary, or fewer ids
            or positions than are asked for.
        ConfigError: there is no such choice of what to train, or peft is not installed.
        CorpusError: the corpus is too short.
        CheckpointError: the folder holds this stage of another model or text, or with other settings.
        DivergenceError: the loss or its gradient is no longer finite.
        Interruption: a signal came; it is a KeyboardInterrupt, and a checkpoint is saved.
    """
    check_converted(model)
    _check_teacher(model, teacher)
    if train not in get_args(Trained):
        raise ConfigError(f"train: expected one of {', '.join(get_args(Trained))}, was {train!r}")
    if isinstance(folder, str) and not folder:
        raise InputError("folder: expected the path of a folder, was ''; the current one is '.'")
    dtype = autocast_dtype(stage.training(), model.device)

    def gradients(batch: Batch, share: float) -> Tensor:
        with autocast(dtype, model.device):
            with torch.no_grad():
                followed = logits_of(teacher, batch)
            found = logits_of(model, batch)
        loss = divergence(found, followed)
        (loss * share).backward()
        return loss.detach()

    was_training = teacher.training
    teacher.eval()
    try:
        with seeded(stage.seed, model.device), _chosen(model, train) as chosen, training_only(model, chosen):
            model.train()
            return StageLoop(
                "distill", model, corpus, stage, gradients=gradients,
                teacher=lambda batches: perplexity(teacher, batches, dtype),
                folder=None if folder is None else Path(folder), progress=progress or SilentProgress(),
                asked={"train": train, "teacher": fingerprint(teacher.named_parameters())},
            ).run()  # fmt: skip
    finally:
        teacher.train(was_training)


def divergence(found: Tensor, followed: Tensor) -> Tensor:
    """Return how far distributions of logits `[B, T, vocab]` diverge from those that are followed, 0-d, in nats."""
    dtype = torch.promote_types(found.dtype, torch.float32)
    own, other = (F.log_softmax(x.to(device=found.device, dtype=dtype).flatten(0, 1), -1) for x in (found, followed))
    return F.kl_div(own, other, reduction="batchmean", log_target=True)


def _check_teacher(model: Any, teacher: Any) -> None:
    if not isinstance(teacher, PreTrainedModel):
        raise InputError(f"teacher: expected a model of transformers, was {type(teacher).__name__}")
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise InputError("teacher: expected a model with weights of its own, shares the converted one's; load it twice")
    theirs, ours = (x.config.get_text_config(decoder=True).vocab_size for x in (teacher, model))
    if theirs != ours:
        raise InputError(f"teacher: expected the model's vocabulary of {ours:,} ids, was of {theirs:,}")


@contextmanager
def _chosen(model: Any, train: Trained) -> Iterator[set[str]]:
    """Yield the names of what is to train; adapters are put on for as long, and merged if the body ends well."""
    if train == "lora":
        with _adapters(model) as names:
            yield names
        return
    attention = {id(p) for module in converted_modules(model) for p in module.parameters()}
    yield {name for name, p in model.named_parameters() if train == "all" or id(p) in attention}


@contextmanager
def _adapters(model: Any) -> Iterator[set[str]]:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError("train: 'lora' needs peft: pip install 'mixer-zoo[distill]'") from error
    names = {id(module): name for name, module in model.named_modules()}
    linear = [part for module in converted_modules(model) for part in module.modules()]
    targets = [names[id(part)] for part in linear if isinstance(part, nn.Linear | Conv1D)]
    transposed = any(isinstance(part, Conv1D) for part in linear)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=targets, fan_in_fan_out=transposed)
    with warnings.catch_warnings():  # peft asks by names that transformers no longer likes
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        adapted: Any = get_peft_model(model, config)
    merged = False
    try:
        yield {name for name, _ in model.named_parameters() if "lora_" in name} | new_parameters(model)
        adapted.merge_and_unload()
        merged = True
    finally:
        if not merged:
            adapted.unload()
        for parameter, required in flags:
            parameter.requires_grad_(required)
