"""The work list of a study is its folder: whoever sees it can take a run that nobody trains, and goes on with it."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from zoo.data import Corpus
from zoo.errors import DivergenceError, InUseError, TrainingError, UntrainableError, ZooError
from zoo.study.collect import has_ended
from zoo.study.divergence import keep_divergence, read_divergence
from zoo.study.halving import allowed_steps, read_stop
from zoo.study.machine import describe_machine, write_machine
from zoo.study.pace import find_pace
from zoo.study.paused import Paused
from zoo.study.progress import StudyProgress, Watched
from zoo.study.status import look
from zoo.study.variants import Part, Run, Variant, variant_by_variant
from zoo.training import train
from zoo.training.run import RunFolder
from zoo.training.workshop import Workshop

__all__ = ["Worker"]

_PATIENCE = 1.0  # seconds between two looks at what another process trains


class Worker:
    """Trains the runs of a study that nobody else does, variant by variant, until all have ended.

    Args:
        parts: of the study.
        folder: of the study.
        corpora: loads what a part is trained on; None for what training makes by itself.
        progress: told of everything.
        device: by default a GPU if there is one, else the CPU.
        early_stop: whether learning rates are halved successively (`zoo.study.halving`).
        place: this worker's among how many, for each to begin with another variant, which it then compiles alone.

    Raises:
        InputError: there is no such device.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        folder: Path,
        corpora: Callable[[Part], Corpus | None],
        progress: StudyProgress,
        *,
        device: str | None = None,
        early_stop: bool = False,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        self._parts, self._folder, self._corpora, self._progress = parts, folder, corpora, progress
        self._device, self._early_stop = device, early_stop
        self._machine = describe_machine(device)
        self._workshop = Workshop()  # runs of one variant follow one another
        chosen = variant_by_variant(parts)
        first = place[0] * len(chosen) // place[1]
        self._order = [*chosen[first:], *chosen[:first]]
        self._told: set[str] = set()
        self._untrainable: dict[str, UntrainableError] = {}  # by variant; the others go on

    def work(self) -> None:
        """Return once every run has ended, here or elsewhere.

        Raises:
            CheckpointError: a folder holds the run of another recipe or corpus.
            TrainingError: training of a run cannot go on, or a file cannot be written.
            UntrainableError: a variant's model does not compile or fit in memory; all runs of the others have ended.
            Interruption: a signal came, or the time is up.
        """
        while True:
            taken = left = False
            for part, variant in self._order:
                for outcome in self._train_variant(part, variant):
                    taken, left = taken or outcome, True
            if not left:
                self._raise_untrainable()
                return
            if not taken:
                time.sleep(_PATIENCE)

    def _train_variant(self, part: Part, variant: Variant) -> Iterator[bool]:
        """Train what there is of a variant, and yield for each of its runs that had not ended whether it was taken."""
        try:
            yield from self._train_runs(part, variant)
        except UntrainableError as error:
            self._progress.say(str(error))
            self._untrainable[f"{part.folder}/{variant.name}"] = error

    def _raise_untrainable(self) -> None:
        if self._untrainable:
            first, *others = self._untrainable.values()
            raise UntrainableError(f"{first}; so it is with {len(others)} more" if others else str(first)) from first

    def _train_runs(self, part: Part, variant: Variant) -> Iterator[bool]:
        if f"{part.folder}/{variant.name}" in self._untrainable:
            return
        if variant.seconds is not None and not (variant.is_paced and self._have_all_ended(variant)):
            try:
                pace = find_pace(variant, self._folder, self._corpora(part), self._device, self._workshop)
            except InUseError:
                yield False
                return
            variant = variant.at_pace(pace.seconds_per_step)
        allowed: Mapping[str, int] = {run.name: variant.steps for run in variant.runs}
        if self._early_stop and not self._have_all_ended(variant):
            allowed = allowed_steps(variant, self._folder)
        for run in variant.runs:
            if has_ended(run, self._folder):
                self._tell(run.name, self._ending(run))
            elif run.name in allowed:
                until = allowed[run.name] if allowed[run.name] < variant.steps else None
                taken = self._take(part, variant, run, until)
                if not taken:
                    self._tell(run.name, "another process trains it")
                yield taken
            else:
                yield False

    def _take(self, part: Part, variant: Variant, run: Run, until: int | None) -> bool:
        """Train a run; False where another process does."""
        place = self._folder / run.name
        watched = Watched(self._progress, look(self._parts, self._folder), run.name, until)
        try:
            with RunFolder(place).locked():
                write_machine(place, self._machine)
            train(
                run.recipe, place, corpus=self._corpora(part), device=self._device, progress=watched,
                workshop=self._workshop,
            )  # fmt: skip
            self._tell(run.name, "done")
        except InUseError:
            return False
        except Paused:
            pass  # until the others have come as far
        except DivergenceError as error:  # a result like any other
            keep_divergence(variant, run, place, error)
            self._tell(run.name, f"diverged: {error}")
        except ZooError as error:
            kind = UntrainableError if isinstance(error, UntrainableError) else TrainingError
            raise kind(f"variant {run.name!r}: {error}") from error
        return True

    def _have_all_ended(self, variant: Variant) -> bool:
        return all(has_ended(run, self._folder) for run in variant.runs)

    def _ending(self, run: Run) -> str:
        if read_divergence(self._folder / run.name):
            return "diverged before"
        return "stopped early before" if read_stop(self._folder / run.name) else "finished before"

    def _tell(self, name: str, what: str) -> None:
        """Say once what became of a run."""
        if name not in self._told:
            self._progress.say(f"{name}: {what}")
            if what != "another process trains it":
                self._told.add(name)
