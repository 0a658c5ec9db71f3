"""From a model on disk to a converted and trained one beside it, which can be stopped and gone on with."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from zoo.data import Corpus, load_corpus
from zoo.errors import InputError
from zoo.hf.convert import convert
from zoo.hf.folders import load_tokenizer, load_transformers
from zoo.hf.report import ConversionReport
from zoo.hf.stages import Stage, StageResult, distill, transfer
from zoo.hf.stages.distill import Trained
from zoo.hf.stages.loop import seeded
from zoo.hf.stages.result import RESULTS
from zoo.recipe.data import DataConfig
from zoo.report.files import writing
from zoo.training import ProgressReporter, SilentProgress
from zoo.training.distributed import choose_device

__all__ = ["Converted", "Plan", "convert_on_disk"]

_WORK = "stages"
"""Folder of checkpoints inside of the new model's, until that is finished."""


@dataclass(frozen=True)
class Plan:
    """What becomes of a model: options of `convert`, a text and the stages to train on it."""

    options: dict[str, Any]
    text: str | None = None
    """As `data.source` of recipes."""
    transfer: Stage | None = None
    distill: Stage | None = None
    train: Trained = "attention"
    """What `distill` trains."""
    seed: int = 0
    """Of gates as they are drawn."""


@dataclass(frozen=True)
class Converted:
    """What was done to a model; `print` it."""

    report: ConversionReport
    stages: tuple[StageResult, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, (self.report, *self.stages)))


def convert_on_disk(
    path: Path | str,
    out: Path | str,
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    progress: Callable[[str], ProgressReporter] | None = None,
) -> Converted:
    """Convert a model of transformers that lies in a folder, train it, and write it into another with its tokenizer.

    The new folder gets weights (float32, where it was trained), config, tokenizer and `stages.json`. Checkpoints lie
    in it until then: called again with the same arguments, the stages go on from there. Nothing comes from the network,
    and no code from the folder is run.

    Args:
        path: a folder with config.json, safetensors and a tokenizer, or a .gguf file, whose weights are unpacked.
        out: a new folder.
        plan: what is done.
        device: by default a GPU if there is one, else the CPU.
        progress: makes what is told how a stage goes, by its name.

    Raises:
        InputError: there is no such model, it cannot be converted, or `out` holds something else.
        ConfigError: an option does not fit, or there are stages without a text.
        CorpusError: the text cannot be read or is too short.
        CheckpointError: `out` holds stages of another plan.
        Interruption: a signal came; a checkpoint is saved.
    """
    path, out = Path(path), Path(out)
    _check_out(out)
    wanted = plan.transfer is not None or plan.distill is not None
    if wanted and plan.text is None:
        raise InputError("text: expected the source of a text to train on, was None")
    chosen = choose_device(device)
    model, tokenizer = (
        load_transformers(path, torch.float32 if wanted else "auto"),
        load_tokenizer(path, required=wanted),
    )
    teacher = copy.deepcopy(model).to(chosen) if plan.distill is not None else None
    with seeded(plan.seed, chosen):
        report = convert(model, **plan.options)
    corpus = None if plan.text is None or not wanted else _corpus(plan.text, tokenizer)
    work = out / _WORK
    with writing(out, InputError):
        work.mkdir(parents=True, exist_ok=True)
    results = () if corpus is None else _train(model.to(chosen), teacher, corpus, plan, work, progress)
    _write(model, tokenizer, work, out)
    return Converted(report, results)


def _corpus(text: str, tokenizer: Any) -> Corpus:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return load_corpus(DataConfig(source=text, tokenizer=str(Path(folder, "tokenizer.json"))))


def _train(
    model: Any, teacher: Any, corpus: Corpus, plan: Plan, work: Path, progress: Callable[[str], ProgressReporter] | None
) -> tuple[StageResult, ...]:
    reporter = progress or (lambda _name: SilentProgress())
    results = []
    if plan.transfer is not None:
        results.append(transfer(model, corpus, plan.transfer, folder=work, progress=reporter("transfer")))
    if plan.distill is not None:
        stage, told = plan.distill, reporter("distill")
        results.append(distill(model, teacher, corpus, stage, train=plan.train, folder=work, progress=told))
    return tuple(results)


def _check_out(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"out: expected a new folder, {out} is a file")
    if (out / "config.json").exists():
        raise InputError(f"out: {out} holds a model already; name a new folder")
    if any(out.iterdir()) and not (out / _WORK).is_dir():
        raise InputError(f"out: {out} holds something else; name a new folder")


def _write(model: PreTrainedModel, tokenizer: Any, work: Path, out: Path) -> None:
    """Write a model whole: config.json, without which there is none, comes last."""
    new = work / "model"
    with writing(out, InputError):
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        if (work / RESULTS).exists():
            os.replace(work / RESULTS, new / RESULTS)
        for name in sorted(os.listdir(new), key=lambda name: name == "config.json"):
            os.replace(new / name, out / name)
        shutil.rmtree(work)
