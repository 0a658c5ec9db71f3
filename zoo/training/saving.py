"""Saving of checkpoints while training goes on, by however many processes there are."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from zoo.report.files import writing
from zoo.training.distributed import Processes
from zoo.training.engine import Engine
from zoo.training.run.checkpoint import CheckpointStore
from zoo.training.run.parts import begin_saving, wait_for

__all__ = ["Saver"]

Facts = Callable[[], Mapping[str, Any]]
"""Returns what stands beside the tensors; called by the first process alone."""


class Saver:
    """Saves the checkpoints of a run. All processes call the same methods.

    Args:
        store: where to.
        processes: who trains together.
    """

    def __init__(self, store: CheckpointStore, processes: Processes) -> None:
        self.newest: Path | None = None
        """The newest checkpoint that is whole."""
        self._store, self._processes = store, processes
        self._finish: Callable[[], None] = _do_nothing

    def save(self, step: int, engine: Engine, facts: Facts) -> None:
        """Save a checkpoint in whole tensors, which the first process alone writes.

        Raises:
            TrainingError: it cannot be written, or the one that was begun before could not; the others stay.
        """
        self.finish()
        tensors = engine.tensors()
        self.newest = self._processes.from_main(lambda: self._store.save(step, tensors, facts()))

    def begin(self, step: int, engine: Engine, facts: Facts) -> None:
        """Begin to save a checkpoint, each process its part of it, and return as soon as training can go on.

        One process alone, or several that do not all see the folder, save at once.

        Raises:
            TrainingError: as of `save`.
        """
        if self._processes.mesh is None:
            self.save(step, engine, facts)
            return
        self.finish()
        folder, told = self._processes.from_main(lambda: (self._store.begin(step), facts()))
        if self._processes.any(not folder.is_dir()):
            self._store.give_up(folder)
            self.save(step, engine, facts)
            return
        complete = partial(self._store.complete, folder, step, facts=told)
        saving = begin_saving(engine.parts(), folder, complete, self._processes.files)

        def finish() -> None:
            place = self._store.place(step)
            try:
                with writing(place):
                    wait_for(saving)
            finally:
                self._store.give_up(folder)
            self.newest = place

        self._finish = finish

    def finish(self) -> None:
        """Return once what was begun is saved.

        Raises:
            TrainingError: it cannot be written.
        """
        finish, self._finish = self._finish, _do_nothing
        finish()


def _do_nothing() -> None:
    pass
