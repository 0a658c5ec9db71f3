"""Checkpoints on disk: folders of safetensors and one JSON file, each whole or absent, checked before use.

A checkpoint is written to a hidden folder beside its place and renamed into it; what must go is renamed away before it
is deleted. So a folder called `step-...` was whole when it got that name, and hidden ones are leftovers.

One process writes a file for the model, one for the optimiser and so on. Several write a file each, of the parts that
they have (`zoo.training.run.parts`), and any number of processes reads either.
"""

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.blocks.rows import ROWS
from zoo.errors import CheckpointError
from zoo.reading import hash_document, hash_file, read_regular
from zoo.report.files import sync_file, sync_folder, writing
from zoo.training.run.parts import first_not_finite, read_whole

__all__ = ["Checkpoint", "CheckpointStore"]

_WHOLE, _IN_PARTS = 5, 6  # formats
# Earlier ones are the same but for an order of rows, after so many changes of it.
_EARLIER = {1: (_WHOLE, 0), 2: (_IN_PARTS, 0), 3: (_WHOLE, 1), 4: (_IN_PARTS, 1)}
_FACTS = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
_logger = logging.getLogger(__name__)


class _DamagedError(CheckpointError):
    """A checkpoint that is no longer whole, or never was worth keeping; an older one may do."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose files were found as they were written."""

    path: Path
    step: int
    facts: dict[str, Any]
    """As given to `CheckpointStore.save`."""
    is_in_parts: bool = False
    """Each of its files is what one of several processes had (`zoo.training.run.parts`)."""
    rows: int = ROWS
    """How rows of projections to heads stand in it (`zoo.blocks.rows`)."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors saved as `name`, whole and on the CPU.

        Raises:
            CheckpointError: there are none of that name in this checkpoint, or they cannot be read.
        """
        if self.is_in_parts:
            return read_whole(self.path, name)
        path = self.path / f"{name}.safetensors"
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds them as `step-00000100` and so on; made when the run is, or else when the first is saved.
        keep: how many of the newest are kept. Two, so that one damaged by the disk is not the end of a run.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its folder; older ones beyond the newest `keep` are then deleted.

        Those of later steps are deleted too: who saves has gone back to before them, since they are unsound.

        Args:
            step: its number.
            tensors: by file, without the suffix, then by name.
            facts: what JSON can hold, to stand beside them.

        Raises:
            TrainingError: it cannot be written, for example on a full disk; all others stay as they are.
        """
        with writing(self.place(step)):
            partial = self.begin(step)
            try:
                return self._complete(partial, _WHOLE, step, _write(partial, tensors), facts)
            finally:
                self.give_up(partial)

    def begin(self, step: int) -> Path:
        """Make and return the folder that several processes write the parts of a checkpoint into, for `complete`.

        Raises:
            TrainingError: it cannot be made.
        """
        place = self.place(step)
        partial = _hidden(place, "partial")
        with writing(place):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        return partial

    def complete(self, partial: Path, step: int, files: Mapping[str, str], facts: Mapping[str, Any]) -> Path:
        """Make parts that were written a checkpoint, as `save` does, and return its folder.

        Args:
            partial: what `begin` returned.
            step: its number.
            files: the SHA-256 of each file, as it was written to the disk.
            facts: what JSON can hold, to stand beside them.

        Raises:
            TrainingError: as of `save`.
        """
        with writing(self.place(step)):
            return self._complete(partial, _IN_PARTS, step, files, facts)

    def give_up(self, partial: Path) -> None:
        """Delete what was begun and is not complete, if it is not."""
        shutil.rmtree(partial, ignore_errors=True)

    def _complete(
        self, partial: Path, form: int, step: int, files: Mapping[str, str], facts: Mapping[str, Any]
    ) -> Path:
        document: dict[str, Any] = {"format": form, "step": step, "files": dict(files), "facts": dict(facts)}
        document["sha256"] = hash_document(document)
        path, place = partial / _FACTS, self.place(step)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        sync_file(path)
        sync_folder(partial)
        for unsound in self._from(step):
            self._discard(unsound)
        os.rename(partial, place)
        sync_folder(self.folder)
        self._prune()
        return place

    def prune(self) -> None:
        """Delete checkpoints beyond the newest `keep`; an interrupted `save` may not have come to it.

        Raises:
            TrainingError: one cannot be deleted.
        """
        with writing(self.folder):
            self._prune()

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, be it whole or not; 0 where there is none.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        steps = self._steps()
        return int(steps[-1].name.removeprefix("step-")) if steps else 0

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None where none was ever saved.

        One that is damaged or not finite is passed over with a warning in the log, for an older one gives the same run
        once more.

        Raises:
            CheckpointError: every checkpoint there is is damaged or not finite, the newest sound one has another
                format, or the folder cannot be read.
        """
        damage: _DamagedError | None = None
        for place in reversed(self._steps()):
            try:
                checkpoint = _open(place)
            except _DamagedError as error:
                _logger.warning("%s; trying the one before", error)
                damage = error
            else:
                return checkpoint
        if damage is not None:
            raise CheckpointError(
                f"{damage}, and no older checkpoint is sound; delete {self.folder.parent} to start anew"
            )
        return None

    def clean(self) -> None:
        """Delete what an interrupted `save` left behind. Only for the one process that trains."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def place(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[Path]:
        return self._from(0)

    def _from(self, step: int) -> list[Path]:
        """Return the checkpoints of that step and later ones, in their order."""
        try:
            names = os.listdir(self.folder)  # a glob takes a folder that it cannot read for an empty one
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be read: {error.strerror}") from None
        numbered = sorted((int(match[1]), name) for name in names if (match := _NAME.fullmatch(name)))
        return [self.folder / name for number, name in numbered if number >= step]

    def _prune(self) -> None:
        for older in self._steps()[: -self._keep]:
            self._discard(older)

    def _discard(self, place: Path) -> None:
        discarded = _hidden(place, "discarded")
        os.rename(place, discarded)
        shutil.rmtree(discarded, ignore_errors=True)


def _hidden(place: Path, what: str) -> Path:
    """Return a name beside a checkpoint's that is nobody else's; `CheckpointStore.clean` finds it."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}.{what}")


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write tensors, a file for each group, and return the files' hashes."""
    files = {}
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        safetensors.torch.save_file(dict(group), path)
        sync_file(path)
        files[path.name] = hash_file(path)
    return files


def _open(place: Path) -> Checkpoint:
    """Return a checkpoint all of whose bytes are as they were written."""
    path = place / _FACTS
    try:
        document = json.loads(read_regular(path))
        claimed = document.pop("sha256")
        sound = claimed == hash_document(document)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise _DamagedError(f"{path} is missing or damaged")
    form, rows = _EARLIER.get(document["format"], (document["format"], ROWS))
    if form not in (_WHOLE, _IN_PARTS):
        raise CheckpointError(f"{place}: has checkpoint format {form}, this version reads up to {_IN_PARTS}")
    with ThreadPoolExecutor() as threads:  # reading and hashing let go of the interpreter
        list(threads.map(lambda file: _check_file(place / file[0], file[1]), document["files"].items()))
    return Checkpoint(place, document["step"], document["facts"], form == _IN_PARTS, rows)


def _check_file(path: Path, expected: str) -> None:
    """Check that a file is as it was written, and that it holds finite values alone."""
    try:
        found = hash_file(path)
    except OSError as error:
        raise _DamagedError(f"{path} cannot be read: {error.strerror}") from None
    if found != expected:
        raise _DamagedError(f"{path} is damaged: its bytes are not those that were written")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (the library's own)
                if first_not_finite({"": {name: file.get_tensor(name)}}) is not None:
                    raise _DamagedError(f"{path} is not sound: {name} is not finite")
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"{path} cannot be read: {error}") from None
