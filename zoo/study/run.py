"""Running a study: every variant is trained, those that are finished already are not trained again."""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import chain
from math import inf
from pathlib import Path
from typing import NamedTuple

from zoo.data import Corpus, bigram_bits_per_byte, load_corpus, validation_batches
from zoo.errors import ConfigError, DivergenceError, Interruption, InUseError, TrainingError, ZooError
from zoo.recipe.study import Study, study_command
from zoo.report.files import replace_file, writing
from zoo.report.tables import GuardedConsole
from zoo.study.divergence import counted, divergences, keep_divergence, read_divergence
from zoo.study.machine import describe_machine, write_machine
from zoo.study.measure import describe_corpus, loss_unit, summarise_variant
from zoo.study.results import Machine
from zoo.study.summary import StudySummary
from zoo.study.variants import Run, Variant, resolve_variants
from zoo.training import ProgressReporter, make_progress, run_status, train
from zoo.training.memory import READING, naming_memory_errors
from zoo.training.run import RunFolder
from zoo.training.run.metrics import check_tensorboard
from zoo.training.signals import watching_signals
from zoo.training.workshop import Workshop

__all__ = ["run_study"]

_PATIENCE = 1.0  # seconds between two looks at what another process trains
_STATE_CONTEXTS = (256, 1_024, 4_096, 16_384, 65_536)


class _Planned(NamedTuple):
    """A run of a variant, where it goes and what it is called."""

    variant: Variant
    run: Run
    folder: Path
    title: str


def run_study(study: Study, folder: Path, *, device: str | None = None, progress: bool = True) -> StudySummary:
    """Train the variants of a study that are not finished yet and write what all of them came to.

    The folder gets `study.yaml`, the runs of each variant under its name, `summary.json`, the table as `summary.csv`,
    `.md` and `.tex`, all runs as `runs.csv`, the plots as PNG files and `index.html`. Everything is checked before
    anything is trained. A run that diverges is a result, and the others go on. If one fails otherwise, or at a signal
    (see `zoo.training.train`), the study ends with a report of the variants that are finished; the same call goes on
    from there. Processes that are given the same study and folder share its runs, and each waits for what the others
    train.

    Args:
        study: what to compare.
        folder: made if missing.
        device: by default a GPU if there is one, else the CPU.
        progress: show a bar for each variant on standard error.

    Raises:
        ConfigError: a variant is not valid or not comparable, or matplotlib or SciPy is not installed, or
            tensorboard where it is asked for.
        InputError: there is no such device.
        CheckpointError: a variant's folder holds the run of another recipe or corpus.
        CorpusError: the corpus cannot be loaded or is too short.
        TrainingError: training of a variant cannot go on, or a file cannot be written.
        Interruption: a signal ended the study.
    """
    with watching_signals():
        return _run_study(study, folder, device, progress=progress)


def _run_study(study: Study, folder: Path, device: str | None, *, progress: bool) -> StudySummary:
    for needed in ("matplotlib", "scipy"):
        if find_spec(needed) is None:
            raise ConfigError(f"a study needs {needed}, which is not installed: pip install 'mixer-zoo[plots]'")
    machine = describe_machine(device)
    variants = resolve_variants(study)
    runs = [(variant, run) for variant in variants for run in variant.runs]
    unfinished = [run for _, run in runs if not _has_ended(run, folder)]
    if any(each.recipe.training.tensorboard for each in unfinished):
        check_tensorboard()
    with naming_memory_errors(READING):
        corpus = load_corpus(variants[0].recipe.data)
        summary = _describe(study, variants, corpus)
    summary = _collect(summary, variants, folder)
    console = GuardedConsole(stderr=True, quiet=not progress)
    workshop = Workshop()  # runs of one variant follow one another

    def take(planned: _Planned) -> bool:
        """Train a run; False where another process does."""
        try:
            _write_machine(planned.folder, machine)
            _train(planned, corpus, device, make_progress(planned.title, console), workshop)
        except InUseError:
            return False
        except DivergenceError as error:  # a result like any other
            keep_divergence(planned.variant, planned.run, planned.folder, error)
            console.print(f"{planned.title}: diverged: {error}", markup=False, highlight=False)
        return True

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "study.yaml", summary.study_yaml.encode())
    elsewhere: list[_Planned] = []  # in training by another process
    try:
        for number, (variant, run) in enumerate(runs, 1):
            planned = _Planned(variant, run, folder / run.name, f"{run.name} ({number} of {len(runs)})")
            if _has_ended(run, folder):
                ended = "diverged" if read_divergence(planned.folder) else "finished"
                console.print(f"{planned.title}: {ended} before", markup=False, highlight=False)
            elif not take(planned):
                console.print(f"{planned.title}: another process trains it", markup=False, highlight=False)
                elsewhere.append(planned)
        while elsewhere:  # which may end without having finished them
            elsewhere = [each for each in elsewhere if not (_has_ended(each.run, folder) or take(each))]
            time.sleep(_PATIENCE if elsewhere else 0)
    except BaseException as error:
        if not (isinstance(error, Interruption) and error.at_once):
            with suppress(TrainingError):  # a disk may be too full for the report too; what stopped it is told
                _report(summary, variants, folder)
        raise
    return _report(summary, variants, folder)


def _report(summary: StudySummary, variants: Sequence[Variant], folder: Path) -> StudySummary:
    """Write and return the summary of what is finished by now; nothing is written if that is nothing."""
    from zoo.study.report import write_report  # needs matplotlib, which is optional

    summary = _collect(summary, variants, folder)
    if summary.variants:
        write_report(summary, folder)
    return summary


def _describe(study: Study, variants: Sequence[Variant], corpus: Corpus) -> StudySummary:
    """Return the summary of a study of which nothing is finished."""
    recipe = variants[0].recipe
    training = recipe.training
    batches = validation_batches(
        corpus.validation, training.batch_size, training.context_length, training.evaluation_tokens
    )
    limit = min(
        each.recipe.model.max_positions if each.recipe.model.positions == "learned" else inf for each in variants
    )
    return StudySummary(
        name=study.name,
        description=study.description,
        recipe=study.recipe,
        study_yaml=study.to_yaml(),
        command=study_command(study),
        date=_now(),
        unit=loss_unit(recipe.data),
        steps=training.steps,
        context_length=training.context_length,
        batch_tokens=training.tokens_per_step,
        seeds=tuple(range(training.seed, training.seed + study.seeds)),
        corpus=describe_corpus(corpus, recipe.data),
        bigram_bits=bigram_bits_per_byte(corpus.train, batches, corpus.tokenizer),
        state_contexts=tuple(context for context in _STATE_CONTEXTS if context <= limit) or (int(limit),),
        planned=tuple(variant.name for variant in variants),
        variants=(),
    )


def _collect(summary: StudySummary, variants: Sequence[Variant], folder: Path) -> StudySummary:
    """Return the summary with every variant all of whose runs have ended by now."""
    ended = [variant for variant in variants if all(_has_ended(run, folder) for run in variant.runs)]
    lost = {variant.name: divergences(variant, folder) for variant in ended}
    kept = (counted(variant, lost[variant.name]) for variant in ended)
    return summary.replace(
        variants=tuple(summarise_variant(each, folder, summary) for each in kept if each is not None),
        divergences=tuple(chain.from_iterable(lost.values())),
        date=_now(),
    )


def _has_ended(run: Run, folder: Path) -> bool:
    finished = run_status(folder / run.name, run.recipe) == "finished"
    return finished or read_divergence(folder / run.name) is not None


def _write_machine(folder: Path, machine: Machine) -> None:
    with RunFolder(folder).locked():
        write_machine(folder, machine)


def _train(
    planned: _Planned, corpus: Corpus, device: str | None, progress: ProgressReporter, workshop: Workshop
) -> None:
    recipe, folder = planned.run.recipe, planned.folder
    try:
        train(recipe, folder, corpus=corpus, device=device, progress=progress, workshop=workshop)
    except (DivergenceError, InUseError):
        raise
    except ZooError as error:
        raise TrainingError(f"variant {planned.run.name!r}: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
