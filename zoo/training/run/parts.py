"""Checkpoints in parts: each of several processes writes and reads what it has, by `torch.distributed.checkpoint`.

A part is a file of safetensors that says where in the whole its tensors stand, so that processes that are laid out in
another way, or one alone, find theirs. Nothing on the disk is code. Tensors are called by group and name, for example
`model/head.weight`.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future as Saving
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from zoo.errors import CheckpointError, ZooError
from zoo.reading import hash_file

__all__ = ["Groups", "Kinds", "begin_saving", "first_not_finite", "kinds_of", "read_parts", "read_whole", "wait_for"]

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name; of what is spread over processes, this one's part."""
Kinds = dict[str, tuple[torch.Size, torch.dtype]]
"""Shape and dtype of whole tensors by name."""


def begin_saving(
    tensors: Groups, folder: Path, complete: Callable[[dict[str, str]], object], group: ProcessGroup
) -> "Saving[Any]":
    """Take a copy of the tensors, begin to write it, and return at once; every process has to call it.

    Args:
        tensors: may change as soon as this returns.
        folder: exists, and every process sees it.
        complete: called with the SHA-256 of each file, by name, once all are on the disk; by the group's first process
            alone, in another thread.
        group: all processes; nobody else may send anything through it meanwhile.
    """
    saving = async_save(_flat(tensors), storage_writer=_Writer(folder, complete), process_group=group)
    return cast("Saving[Any]", saving)


def wait_for(saving: "Saving[Any]") -> None:
    """Return once every process has written its part.

    Raises:
        OSError: one could not write, the same for all processes; or another error that one had.
    """
    try:
        saving.result()
    except CheckpointException as error:  # which is no Exception
        causes = [cause for cause, _ in error.failures.values()]
        known = [cause for cause in causes if isinstance(cause, OSError | ZooError | SafetensorError)]
        raise (known or causes)[0] from None


def kinds_of(folder: Path, group: str) -> Kinds:
    """Return what a checkpoint in parts has of a group.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = _metadata(folder).state_dict_metadata
    return {
        name.removeprefix(f"{group}/"): (kind.size, kind.properties.dtype)
        for name, kind in found.items()
        if name.startswith(f"{group}/") and isinstance(kind, TensorStorageMetadata)
    }


def read_parts(folder: Path, into: Groups, group: ProcessGroup) -> None:
    """Read into these tensors what a checkpoint has of their names, each process its part. All have to call it.

    Raises:
        CheckpointError: a process cannot read it; the same for all.
    """
    try:
        load(_flat(into), storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise CheckpointError(f"{folder}: cannot be read: {cause}") from None


def read_whole(folder: Path, group: str) -> dict[str, Tensor]:
    """Return the tensors of a group, put together, on the CPU. No other process is needed.

    Raises:
        CheckpointError: it cannot be read.
    """
    whole = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds_of(folder, group).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what is asked for
        try:
            load(_flat({group: whole}), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise CheckpointError(f"{folder}: cannot be read: {cause}") from None
    return whole


def first_not_finite(tensors: Groups) -> str | None:
    """Return the name of a tensor that holds NaN or infinity, if any does."""
    every = ((name, tensor) for group in tensors.values() for name, tensor in group.items())
    return next((name for name, tensor in every if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return not own.is_floating_point() or bool(own.isfinite().all())


class _Writer(HuggingFaceStorageWriter):
    """Writes parts, and says what they are once all of them are on the disk."""

    def __init__(self, folder: Path, complete: Callable[[dict[str, str]], object]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._complete = folder, complete

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner).wait()
        hashes = {name: hash_file(self._folder / name) for name in {one.storage_data.relative_path for one in written}}
        told: Future[list[WriteResult]] = Future()
        told.set_result([replace(one, storage_data=hashes) for one in written[:1]])
        return told

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        hashes: dict[str, str] = {}
        for written in results:
            for one in written:
                hashes |= one.storage_data
        self._complete(hashes)


def _metadata(folder: Path) -> Metadata:
    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata()
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None


def _flat(tensors: Groups) -> dict[str, Any]:
    return {f"{group}/{name}": tensor for group, own in tensors.items() for name, tensor in own.items()}
