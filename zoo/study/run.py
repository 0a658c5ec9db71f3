"""Running a study: every run is trained that is not finished, by one process or several, and the page is written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

from zoo.data import Corpus, load_corpus
from zoo.errors import ConfigError, Interruption, TrainingError
from zoo.recipe import load_recipe
from zoo.recipe.study import Study
from zoo.report.files import replace_file, writing
from zoo.report.tables import GuardedConsole
from zoo.study.collect import collect, has_ended
from zoo.study.machine import describe_machine
from zoo.study.processes import Crew
from zoo.study.progress import StudyProgress
from zoo.study.resolve import resolve_study
from zoo.study.setting import describe_parts, write_setting
from zoo.study.summary import StudySummary
from zoo.study.variants import Part, only_runs
from zoo.study.work import Worker
from zoo.training.memory import READING, naming_memory_errors
from zoo.training.run.metrics import check_tensorboard
from zoo.training.signals import stopping_after, watching_signals

__all__ = ["check_libraries", "run_study", "work_on", "write_reports"]


def run_study(
    study: Study,
    folder: Path,
    *,
    device: str | None = None,
    progress: bool = True,
    processes: int = 1,
    seconds: float | None = None,
    early_stop: bool = False,
    only: Sequence[str] = (),
) -> tuple[StudySummary, ...]:
    """Train the runs of a study that are not finished yet and write what all of them came to.

    The folder gets `study.yaml`, the runs of each variant under its name and the report (`zoo.study.report`), a study
    of several tasks a folder with all that for each. Everything is checked before anything is trained. A run that
    diverges is a result, and the others go on. If one fails otherwise, or at a signal (see `zoo.training.train`), the
    study ends with a report of what is finished; the same call goes on from there. Processes that are given the same
    study and folder share its runs, and each waits for what the others train.

    Args:
        study: what to compare.
        folder: made if missing.
        device: by default a GPU if there is one, else the CPU.
        progress: show on standard error how far it is.
        processes: that train at the same time, each with one thread and, without `device`, a GPU of its own.
        seconds: after which it ends as at a signal: the step is finished and saved.
        early_stop: give up learning rates that are hopeless early (`zoo.study.halving`).
        only: train the runs alone whose folder, from the study's on, is like one of these, such as `*-seed-0`.

    Returns:
        What each task, with each of several budgets, came to, in the study's order.

    Raises:
        ConfigError: no run is like one of `only`; a variant is not valid or not comparable (`FaultsError`: a line for
            each); or matplotlib or SciPy is not installed, or tensorboard where it is asked for.
        InputError: there is no such device.
        CheckpointError: a variant's folder holds the run of another recipe or corpus.
        CorpusError: the corpus cannot be loaded or is too short.
        TrainingError: training of a variant cannot go on, or a file cannot be written.
        Interruption: a signal ended the study, or the time is up, which is SIGUSR1.
    """
    check_libraries()
    with watching_signals(), nullcontext() if seconds is None else stopping_after(seconds):
        parts = _checked_parts(study, folder, device)
        corpora = _Corpora()
        chosen = only_runs(parts, only) if only else parts
        settings = describe_parts(study, parts, corpora)
        for setting, part in zip(settings, parts, strict=True):
            collect(setting, part, [folder])  # what is there of another recipe or corpus is refused before training
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "study.yaml", study.to_yaml().encode())
        replace_file(folder / "recipe.yaml", load_recipe(study.recipe).to_yaml().encode())
        for setting, part in zip(settings, parts, strict=True):
            write_setting(setting, folder / part.folder)
        runs = [run for part in chosen for variant in part.variants for run in variant.runs]
        left = sum(not has_ended(run, folder) for run in runs)
        console = GuardedConsole(stderr=True, quiet=not progress)
        with _reported(study, settings, parts, folder), StudyProgress(study.name, console) as shown:
            if min(processes, left) > 1:
                crew = Crew(chosen, folder, shown, device=device, early_stop=early_stop, only=only)
                crew.work(min(processes, left))
            else:
                Worker(chosen, folder, corpora, shown, device=device, early_stop=early_stop).work()
    return write_reports(study, settings, parts, folder)


def work_on(
    study: Study, folder: Path, *, device: str | None, early_stop: bool, only: Sequence[str], place: tuple[int, int]
) -> None:
    """Train the runs of a study as one of several processes, without a word and without a report.

    Raises:
        ZooError: see `run_study`.
    """
    with watching_signals():
        parts = _checked_parts(study, folder, device)
        silent = StudyProgress(study.name, GuardedConsole(stderr=True, quiet=True))
        chosen = only_runs(parts, only) if only else parts
        Worker(chosen, folder, _Corpora(), silent, device=device, early_stop=early_stop, place=place).work()


def check_libraries() -> None:
    """Check that a report can be written, before anything is trained.

    Raises:
        ConfigError: a library is not installed.
    """
    for needed in ("matplotlib", "scipy"):
        if find_spec(needed) is None:
            raise ConfigError(f"a study needs {needed}, which is not installed: pip install 'mixer-zoo[plots]'")


def write_reports(
    study: Study, settings: list[StudySummary], parts: tuple[Part, ...], folder: Path
) -> tuple[StudySummary, ...]:
    """Write and return what is finished by now of every task; of none of which anything is, nothing is written."""
    from zoo.study.report import write_overview, write_report  # needs matplotlib, which is optional

    found = tuple(collect(setting, part, [folder]) for setting, part in zip(settings, parts, strict=True))
    for summary, part in zip(found, parts, strict=True):
        if summary.variants:
            write_report(summary, folder / part.folder)
    if len(parts) > 1:
        write_overview(study, found, parts, folder)
    return found


def _checked_parts(study: Study, folder: Path, device: str | None) -> tuple[Part, ...]:
    """Return the parts of a study, refused where its device or an option of an unfinished run is not there."""
    describe_machine(device)
    parts = resolve_study(study, folder)
    runs = [run for part in parts for variant in part.variants if variant.is_paced for run in variant.runs]
    if any(run.recipe.training.tensorboard for run in runs if not has_ended(run, folder)):
        check_tensorboard()
    return parts


class _Corpora:
    """The texts of a study's tasks, each loaded once and only when it is needed."""

    def __init__(self) -> None:
        self._loaded: dict[str, Corpus] = {}

    def __call__(self, part: Part) -> Corpus | None:
        if not part.is_text:
            return None
        data = part.variants[0].recipe.data
        if part.task not in self._loaded:
            with naming_memory_errors(READING):
                self._loaded[part.task] = load_corpus(data)
        return self._loaded[part.task]


@contextmanager
def _reported(study: Study, settings: list[StudySummary], parts: tuple[Part, ...], folder: Path) -> Iterator[None]:
    """Write the report of what is finished also where the body fails, unless a second signal ends it at once."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Interruption) and error.at_once):
            with suppress(TrainingError):  # a disk may be too full for the report too; what stopped it is told
                write_reports(study, settings, parts, folder)
        raise
