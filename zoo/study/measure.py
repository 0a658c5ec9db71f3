"""From a finished run and a corpus to the numbers of a summary."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from zoo.accounting import account
from zoo.data import Corpus, DataConfig, TokenStream
from zoo.errors import CheckpointError, ConfigError
from zoo.reading import read_regular
from zoo.report.thinning import evenly
from zoo.study.machine import read_machine
from zoo.study.results import Accuracy, Curve, LengthLoss, PositionLoss, RunSummary, VariantSummary
from zoo.study.summary import CorpusSummary, StudySummary
from zoo.study.variants import Run, Variant
from zoo.training import TrainingResult, load_result, read_metrics
from zoo.training.objective import HALVES

__all__ = [
    "describe_corpus",
    "loss_unit",
    "summarise_variant",
    "training_curve",
    "validation_curve",
]

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


def summarise_variant(variant: Variant, finished: Mapping[str, Path], summary: StudySummary) -> VariantSummary:
    """Return the numbers of a variant.

    Args:
        variant: what was trained; of its runs only those that count.
        finished: the folder of each of them, by name.
        summary: of the study, for the corpus and the contexts that the state is stated for.

    Raises:
        CheckpointError: a run was trained on another corpus, or its files are damaged.
    """
    context = summary.context_length
    costs = account(variant.recipe, (*summary.state_contexts, context))
    results = [load_result(finished[run.name]) for run in variant.runs]
    return VariantSummary(
        name=variant.name,
        mixer=variant.mixer,
        overrides=variant.overrides,
        parameters=results[0].parameters,
        feed_forward_width=variant.recipe.model.hidden_width,
        forward_flops_per_token=costs.forward_flops_per_token[context],
        training_flops_per_token=costs.training_flops_per_token[context],
        state_bytes=tuple(costs.state_bytes[each] for each in summary.state_contexts),
        tokens=results[0].tokens,
        runs=tuple(
            _summarise_run(run, result, finished[run.name], summary.corpus)
            for run, result in zip(variant.runs, results, strict=True)
        ),
    )


def _summarise_run(run: Run, result: TrainingResult, folder: Path, corpus: CorpusSummary | None) -> RunSummary:
    if corpus is not None and result.corpus_hash != corpus.hash:
        raise CheckpointError(
            f"{folder}: was trained on another corpus (sha256 {result.corpus_hash[:12]}, now "
            f"{corpus.hash[:12]}); choose another folder or delete this one"
        )
    records = read_metrics(folder / "metrics.jsonl")
    try:
        # Runs of before there were rates to choose from do not tell their halves, and none of them needs it.
        halves = [records[-1].get(name, result.final_bits_per_byte) for name in HALVES]
        return RunSummary(
            learning_rate=run.learning_rate,
            seed=run.seed,
            final_bits=result.final_bits_per_byte,
            choosing_bits=halves[0],
            reported_bits=halves[1],
            best_bits=result.best_bits_per_byte,
            seconds=result.seconds,
            tokens_per_second=result.tokens_per_second,
            compile_seconds=result.compile_seconds,
            graph_breaks=result.graph_breaks,
            recompiles=result.recompiles,
            validation=validation_curve(records),
            training=training_curve(records, corpus),
            machine=read_machine(folder),
            **_measures(folder / "result.json"),
        )
    except (KeyError, TypeError, IndexError):  # of a run whose result, an earlier version's, does not tell its metrics
        raise CheckpointError(
            f"{folder / 'metrics.jsonl'}: is damaged; put it back from a copy, or delete {folder} to train anew"
        ) from None


def _measures(path: Path) -> dict[str, Any]:
    """Return what a result says besides the loss; a run that did not measure it does not have it.

    Positions that no document reaches, and lengths at which the loss is not finite, have none and are left out.

    Raises:
        CheckpointError: it is something else.
    """
    found = json.loads(read_regular(path))  # which was read before, and is whole
    try:
        return {
            "positions": tuple(map(PositionLoss.from_mapping, _with_loss(found.get("positions", ())))),
            "lengths": tuple(map(LengthLoss.from_mapping, _with_loss(found.get("lengths", ())))),
            "accuracy": tuple(Accuracy.from_mapping(each) for each in found.get("accuracy", ())),
            "state_bytes": found.get("state_bytes"),
            "peak_memory_bytes": found.get("peak_memory_bytes"),
        }
    except ConfigError as error:
        raise CheckpointError(f"{path}: not the result of a run: {error}") from None


def _with_loss(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in entries if each.get("loss", 0.0) is not None]


def validation_curve(records: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the evaluations among a run's metrics, of many some from the first to the last, each as it was."""
    evaluations = evenly([record for record in records if record["kind"] == "validation"], _CURVE_POINTS)
    return _curve([[record] for record in evaluations], [record["bits_per_byte"] for record in evaluations])


def training_curve(records: Sequence[Mapping[str, Any]], corpus: CorpusSummary | None) -> Curve:
    """Return the training losses among a run's metrics, neighbours averaged where there are more than a plot can show.

    Metrics count them in nats per token; a token is taken for the training text's average number of bytes, or for one
    where there is no text.
    """
    lines = [record for record in records if record["kind"] == "train"]
    group = math.ceil(len(lines) / _CURVE_POINTS) or 1
    groups = [lines[start : start + group] for start in range(0, len(lines), group)]
    bits_per_nat = (1.0 if corpus is None else corpus.train_tokens / corpus.train_bytes) / math.log(2)
    return _curve(groups, [bits_per_nat * fmean(record["loss"] for record in group) for group in groups])


def _curve(groups: Sequence[Sequence[Mapping[str, Any]]], bits: Sequence[float]) -> Curve:
    """Return a curve with one point for each group of records, in its middle."""
    return Curve(
        tokens=tuple(round(fmean(record["tokens"] for record in group)) for group in groups),
        flops=tuple(fmean(record["flops"] for record in group) for group in groups),
        seconds=tuple(fmean(record["seconds"] for record in group) for group in groups),
        bits=tuple(bits),
    )
