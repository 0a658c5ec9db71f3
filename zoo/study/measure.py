"""From a finished run, a corpus and a machine to the numbers of a summary."""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from zoo.data import Corpus, DataConfig, TokenStream
from zoo.study.summary import CorpusSummary, Curve, Machine

__all__ = ["describe_corpus", "describe_machine", "loss_unit", "training_curve", "validation_curve"]

_CHUNK = 2**22
_CURVE_POINTS = 300


def describe_corpus(corpus: Corpus, config: DataConfig) -> CorpusSummary:
    """Count a corpus' documents and bytes; reads through all of it."""
    training, validation = (_count_ids(stream, corpus.vocab_size) for stream in (corpus.train, corpus.validation))
    separator = corpus.tokenizer.separator
    return CorpusSummary(
        source=config.source,
        tokenizer=config.tokenizer,
        documents=None if separator is None else int((training + validation)[separator]),
        train_bytes=int(training @ corpus.tokenizer.byte_lengths),
        validation_bytes=int(validation @ corpus.tokenizer.byte_lengths),
        train_tokens=len(corpus.train),
        validation_tokens=len(corpus.validation),
        hash=corpus.hash,
    )


def _count_ids(stream: TokenStream, vocab_size: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(stream), _CHUNK):
        counts += np.bincount(stream[start : start + _CHUNK], minlength=vocab_size)
    return counts


def loss_unit(config: DataConfig) -> str:
    """Return what a loss in `config`'s text is counted in: without a tokenizer the bytes of a token are unknown."""
    return "bits per token" if config.tokenizer == "none" else "bits per byte"


def describe_machine(device: torch.device) -> Machine:
    """Name the versions and the hardware that training on `device` uses."""
    return Machine(
        zoo=version("mixer-zoo"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        threads=torch.get_num_threads(),
    )


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"


def validation_curve(records: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the evaluations among a run's metrics."""
    evaluations = [record for record in records if record["kind"] == "validation"]
    return _curve([[record] for record in evaluations], [record["bits_per_byte"] for record in evaluations])


def training_curve(records: Sequence[Mapping[str, Any]], corpus: CorpusSummary) -> Curve:
    """Return the training losses among a run's metrics, neighbours averaged where there are more than a plot can show.

    Metrics count them in nats per token; a token is taken for the training text's average number of bytes.
    """
    lines = [record for record in records if record["kind"] == "train"]
    group = math.ceil(len(lines) / _CURVE_POINTS) or 1
    groups = [lines[start : start + group] for start in range(0, len(lines), group)]
    bits_per_nat = corpus.train_tokens / corpus.train_bytes / math.log(2)
    return _curve(groups, [bits_per_nat * fmean(record["loss"] for record in group) for group in groups])


def _curve(groups: Sequence[Sequence[Mapping[str, Any]]], bits: Sequence[float]) -> Curve:
    """Return a curve with one point for each group of records, in its middle."""
    return Curve(
        tokens=tuple(round(fmean(record["tokens"] for record in group)) for group in groups),
        flops=tuple(fmean(record["flops"] for record in group) for group in groups),
        seconds=tuple(fmean(record["seconds"] for record in group) for group in groups),
        bits=tuple(bits),
    )
