"""What a study is before anything of it is finished, kept in its folder: a page takes no corpus and no device."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from zoo.data import Corpus, bigram_bits_per_byte, validation_batches
from zoo.errors import CheckpointError
from zoo.reading import read_regular
from zoo.recipe.study import Study, study_command
from zoo.report.files import replace_file, writing
from zoo.study.measure import describe_corpus, loss_unit
from zoo.study.options import differing_options
from zoo.study.summary import StudySummary
from zoo.study.variants import Part

__all__ = ["describe_parts", "now", "read_setting", "write_setting"]

_FILE = "setting.json"
_STATE_CONTEXTS = (256, 1_024, 4_096, 16_384, 65_536)


def describe_parts(study: Study, parts: Sequence[Part], corpora: Callable[[Part], Corpus | None]) -> list[StudySummary]:
    """Return the summary of each part of a study, of which nothing is finished.

    Args:
        study: which.
        parts: of it.
        corpora: the text of a part; None for a task without one. Each task's is read through once.

    Raises:
        CorpusError: a corpus is too short.
    """
    of_task: dict[str, StudySummary] = {}
    for part in parts:
        if part.task not in of_task:
            of_task[part.task] = _describe(study, part, corpora(part))
    return [_budgeted(of_task[part.task], part) for part in parts]


def _budgeted(setting: StudySummary, part: Part) -> StudySummary:
    """Return a setting as that of a part, which has a budget of its own."""
    return setting.replace(
        budget="" if part.budget is None else str(part.budget),
        budget_kind="tokens" if part.budget is None else part.budget.kind,
        steps=part.variants[0].recipe.training.steps,
        label=part.label,
        folder=part.folder,
    )


def _describe(study: Study, part: Part, corpus: Corpus | None) -> StudySummary:
    recipe = part.variants[0].recipe
    training = recipe.training
    batches = corpus and validation_batches(
        corpus.validation, training.batch_size, training.context_length, training.evaluation_tokens
    )
    limit = min(
        each.recipe.model.max_positions if each.recipe.model.positions == "learned" else inf for each in part.variants
    )
    return StudySummary(
        name=study.name,
        description=study.description,
        recipe=study.recipe,
        study_yaml=study.to_yaml(),
        command=study_command(study),
        date=now(),
        unit=loss_unit(recipe.data) if part.is_text else "bits per answer",
        task=part.task,
        match=study.match,
        steps=training.steps,
        context_length=training.context_length,
        batch_tokens=training.tokens_per_step,
        seeds=tuple(range(training.seed, training.seed + study.seeds)),
        corpus=None if corpus is None else describe_corpus(corpus, recipe.data),
        bigram_bits=None if corpus is None else bigram_bits_per_byte(corpus.train, batches or [], corpus.tokenizer),
        state_contexts=tuple(context for context in _STATE_CONTEXTS if context <= limit) or (int(limit),),
        planned=tuple(variant.name for variant in part.variants),
        options=differing_options(part.variants),
        variants=(),
    )


def write_setting(setting: StudySummary, folder: Path) -> None:
    """Write a setting into the folder of its part of a study, which is made if missing.

    Raises:
        TrainingError: it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / _FILE, setting.to_json().encode())


def read_setting(folder: Path) -> StudySummary:
    """Return the setting in the folder of a part of a study; one of before there was such a file is in its summary.

    Raises:
        CheckpointError: the folder has neither, or cannot be read.
        ConfigError: it is damaged.
    """
    for path in (folder / _FILE, folder / "summary.json"):
        if path.exists():
            try:
                text = read_regular(path).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from None
            found = StudySummary.from_json(text, str(path))
            return found.replace(variants=(), divergences=(), stopped=(), waiting={})
    raise CheckpointError(f"{folder}: no study was run here")


def now() -> str:
    """Return the time, as a summary has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
