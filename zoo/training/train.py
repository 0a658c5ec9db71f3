"""`train`: from a recipe to a finished run."""

from pathlib import Path

import torch

from zoo.data import Corpus, load_corpus
from zoo.errors import ConfigError, InputError
from zoo.recipe import Recipe
from zoo.tasks import Task
from zoo.training.distributed import join_processes
from zoo.training.loop import Trainer
from zoo.training.memory import READING, advice, naming_memory_errors
from zoo.training.progress import ProgressReporter, SilentProgress
from zoo.training.run import RunFolder
from zoo.training.run.metrics import check_tensorboard
from zoo.training.run.result import TrainingResult
from zoo.training.signals import watching_signals
from zoo.training.workshop import Workshop

__all__ = ["load_material", "train"]


def train(
    recipe: Recipe,
    folder: Path | str,
    *,
    corpus: Corpus | None = None,
    device: torch.device | str | None = None,
    progress: ProgressReporter | None = None,
    workshop: Workshop | None = None,
) -> TrainingResult:
    """Train a recipe's model, or go on with it, and return what the run came to.

    The folder holds everything: `recipe.yaml`, `metrics.jsonl` (one JSON object a line), `checkpoints/` and, when
    training is finished, `result.json`. Called again, `train` continues from the newest whole checkpoint, on a CPU with
    bitwise the losses and weights that an uninterrupted run has; a finished run is returned as it is, or goes on where
    `recipe` asks for more steps, or for another `evaluation` of its last weights (`zoo.training.run.growth` says what
    else may change). SIGINT (Ctrl-C), SIGTERM and SIGHUP end it after the step that is being made, with a checkpoint; a
    second one ends it at once. Under `torchrun` the processes train one model together. The global random number
    generators are left as they were. With `training.tensorboard`, `tensorboard/` gets the metrics as events.

    Args:
        recipe: what to train and how.
        folder: made if missing.
        corpus: what `recipe.data` names, where it is loaded already; nothing for a task, which has none.
        device: by default a GPU if there is one, else the CPU.
        progress: told how training goes, for example `make_progress(recipe.name)`; None shows nothing.
        workshop: keeps the compiled model, for runs one after the other that differ in seed and learning rate alone.

    Raises:
        CheckpointError: the folder holds the run of another recipe or corpus, or its checkpoints are damaged.
        ConfigError: the model's vocabulary is smaller than the corpus's, or tensorboard is asked for and not installed.
        CorpusError: the corpus cannot be loaded or is too short.
        InputError: there is no such device, `folder` is empty, or there is a corpus for a task.
        TrainingError: the loss or its gradient is no longer finite, the model does not compile whole, or a file cannot
            be written, for example on a full disk; memory does not suffice; or another process is training in the
            folder.
        Interruption: a signal ended training; it is a KeyboardInterrupt.
    """
    if folder == "":
        raise InputError("folder: expected the path of a folder, was ''; the current one is '.'")
    with watching_signals():
        return _train(recipe, RunFolder(Path(folder)), corpus, device, progress, workshop or Workshop())


def _train(
    recipe: Recipe,
    run: RunFolder,
    corpus: Corpus | None,
    device: torch.device | str | None,
    progress: ProgressReporter | None,
    workshop: Workshop,
) -> TrainingResult:
    joined = join_processes(device, recipe.training.parallel)
    with joined as processes, torch.random.fork_rng(devices=processes.gpus):
        finished = processes.from_main(lambda: run.result() if run.status(recipe) == "finished" else None)
        if finished is not None:
            return finished
        if recipe.training.tensorboard:
            check_tensorboard()
        material = load_material(recipe, corpus)
        torch.manual_seed(recipe.training.seed)
        objective = workshop.objective(recipe, processes)
        reporter = SilentProgress() if progress is None or not processes.is_main else progress
        with naming_memory_errors(advice(recipe.training)):
            return Trainer(objective, recipe, material, run, processes, reporter).run()


def load_material(recipe: Recipe, corpus: Corpus | None) -> Corpus | Task:
    """Return what the recipe trains on."""
    if recipe.task is not None:
        if corpus is not None:
            raise InputError(f"corpus: expected none for task {recipe.task.kind}, which draws what it trains on")
        return recipe.task
    if corpus is None:
        with naming_memory_errors(READING):
            corpus = load_corpus(recipe.data)
    if corpus.vocab_size > recipe.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size: must be at least the corpus's {corpus.vocab_size}, got {recipe.model.vocab_size}"
        )
    return corpus
