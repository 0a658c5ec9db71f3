"""One process or many: who trains together, what they agree on, and what each has of a batch."""

import atexit
import functools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from zoo.data import Batch
from zoo.errors import ConfigError, InputError, ZooError
from zoo.kernels.devices import usable_device
from zoo.kernels.sequence import SequenceGroup
from zoo.recipe.training import ParallelConfig

__all__ = ["ALONE", "Meshes", "Processes", "choose_device", "join_processes", "own_rank"]

Agreed = TypeVar("Agreed")
_ERROR = "zoo/error"


class Meshes(NamedTuple):
    """What a model is spread over. Where there are replicas, the first dimension of the first two is `dp_replicate`; in
    their last one sharing of data and of sequences is one, and in that of what is around layers sharing of heads too.
    """

    around: DeviceMesh
    """What is around the layers: embeddings, the last norm, the head."""
    layers: DeviceMesh
    """Each layer, or the process's heads of it."""
    heads: DeviceMesh | None
    """Those that have each layer's heads together; None: each has all of them."""


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, as one of them sees them."""

    device: torch.device
    rank: int = 0
    count: int = 1
    mesh: Meshes | None = None
    """None for a single process."""
    group: SequenceGroup | None = None
    """Those that have this process's sequences together with it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def data_count(self) -> int:
        """In how many parts the rows of a batch are shared out."""
        return self.count // (self._columns * self._copies)

    @property
    def data_rank(self) -> int:
        """Which part this process has."""
        return self.rank // (self._columns * self._copies)

    @property
    def _columns(self) -> int:
        """In how many shares a sequence is cut."""
        return 1 if self.group is None else self.group.size

    @property
    def _copies(self) -> int:
        """How many processes have the same tokens, and each some of the heads."""
        return 1 if self.mesh is None or self.mesh.heads is None else self.mesh.heads.size()

    @property
    def files(self) -> dist.ProcessGroup:
        """All of several processes, to agree on files beside what they compute."""
        return _files()

    @property
    def gpus(self) -> list[torch.device]:
        """The GPU that this process computes on, if any."""
        return [self.device] if self.device.type == "cuda" else []

    def barrier(self) -> None:
        """Return once every process is here."""
        if self.mesh is not None:
            dist.barrier()

    def any(self, own: bool, /) -> bool:
        """Return whether it is true of any process."""
        if self.mesh is None:
            return own
        seen = torch.tensor(int(own))
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes, elementwise."""
        if self.mesh is None:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.count

    def join(self, share: Tensor, rows: int) -> Tensor:
        """Return, of what each process has of a batch of so many rows as `share_of` cuts it, the whole, on the CPU."""
        if self.mesh is None:
            return share
        parts = [torch.empty_like(share) for _ in range(self.count)]
        dist.all_gather(parts, share.contiguous())
        shares = parts[:: self._copies]
        whole = [torch.cat(shares[i : i + self._columns], 1) for i in range(0, len(shares), self._columns)]
        return whole[0] if len(share) == rows else torch.cat(whole)

    def first(self, own: Agreed | None, /) -> Agreed | None:
        """Return what the first process has of those that have anything but None."""
        if self.mesh is None:
            return own
        every: list[Agreed | None] = [None] * self.count
        dist.all_gather_object(every, own)
        return next((one for one in every if one is not None), None)

    def from_main(self, action: Callable[[], Agreed], /) -> Agreed:
        """Return what `action` returns on the main process, the only one that calls it.

        Files are looked at by one process, so that no two can find them different, and none waits for one that failed.

        Raises:
            ZooError: `action` raised it; every process raises the same.
        """
        if self.mesh is None:
            return action()
        told: list[Any] = [None, None]
        if self.is_main:
            try:
                told = [action(), None]
            except ZooError as error:
                told = [None, error]
            except BaseException:
                dist.broadcast_object_list([None, ZooError("the first process failed")])
                raise
        dist.broadcast_object_list(told)
        result, failure = told
        if failure is not None:
            raise failure
        agreed: Agreed = result
        return agreed

    def share_of(self, batch: Batch) -> Batch:
        """Return this process's part of a batch: of its rows, or all where they cannot be shared out evenly, a share of
        their tokens.
        """
        rows = len(batch.tokens)
        if rows % self.data_count == 0:
            size = rows // self.data_count
            batch = Batch(*(tensor[self.data_rank * size : (self.data_rank + 1) * size] for tensor in batch))
        return self.tokens_of(batch)

    def tokens_of(self, rows: Batch) -> Batch:
        """Return this process's share of the tokens of rows that it has with others, whose number divides theirs."""
        if self.group is None:
            return rows
        place = self.rank // self._copies % self._columns
        return Batch(*(tensor.chunk(self._columns, 1)[place] for tensor in rows))


ALONE = Processes(torch.device("cpu"))
"""One process."""


@contextmanager
def join_processes(
    device: torch.device | str | None = None, parallel: ParallelConfig | None = None
) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or stand alone without it.

    They stay joined until this process ends, or are the group that the program has joined by itself.

    Args:
        device: where this process computes; by default the GPU that is its own, else the CPU.
        parallel: how the processes are laid out.

    Raises:
        ConfigError: that many processes cannot be laid out so.
        InputError: there is no such device, or the launcher's variables make no sense.
    """
    count = dist.get_world_size() if dist.is_initialized() else _from_environment("WORLD_SIZE", 1, least=1)
    layout = _layout(parallel or ParallelConfig(), count)
    chosen = choose_device(device)
    if count == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        _join(chosen, count)
    rank = dist.get_rank()
    try:
        mesh = _mesh(chosen.type, layout)
        group = SequenceGroup.of(mesh["cp"].get_group(), chosen) if layout.context > 1 else None
        yield Processes(chosen, rank, count, _spreading(mesh), group)
    except ZooError as error:
        if not _is_told_by_first(rank, str(error)):
            error.args = (f"rank {rank}: {error}",)
        raise


def _is_told_by_first(rank: int, message: str) -> bool:
    """Return whether the first process fails of the same, within a moment, and so tells it for all."""
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set(_ERROR, message)
        return True
    try:
        store.wait([_ERROR], timedelta(seconds=2))
        return bool(store.get(_ERROR).decode() == message)
    except dist.DistError:
        return False


def own_rank() -> int:
    """Return this process's number among those that `torchrun` started, 0 without it or where it is no number."""
    try:
        return _from_environment("RANK", 0, least=0)
    except InputError:
        return 0


def choose_device(name: torch.device | str | None) -> torch.device:
    """Return the device of that name, of several GPUs the one that is this process's; None: a GPU, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    local = _from_environment("LOCAL_RANK", 0, least=0)
    if name is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda"
    device = usable_device(name)
    if device.type == "meta":
        raise InputError("device: must be one that computes, such as 'cpu', got 'meta'")
    if device.type != "cuda" or device.index is not None:
        return device
    if local >= (there := torch.cuda.device_count()):
        raise InputError(f"LOCAL_RANK: expected a GPU for each process here, of which there are {there}, was {local}")
    return torch.device("cuda", local)


def _from_environment(name: str, default: int, *, least: int) -> int:
    """Return a number that the launcher sets."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, as torchrun sets it, was {text!r:.60}")
    return int(text)


def _join(device: torch.device, count: int) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(f"{name}: expected a value, as WORLD_SIZE is {count}; torchrun sets them all")
    rank = _from_environment("RANK", 0, least=0)
    if rank >= count:
        raise InputError(f"RANK: expected less than WORLD_SIZE, {count}, was {rank}")
    # gloo beside nccl: checkpoints gather tensors on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    """Leave all groups, once gloo's threads have let go of what they sent last.

    For that they need the interpreter's lock, which is free while this sleeps. One that comes to it after the
    interpreter has gone ends the process by SIGABRT.
    """
    time.sleep(0.1)
    if dist.is_initialized():
        dist.destroy_process_group()


class _Layout(NamedTuple):
    """Numbers of replicas, of shards of each, of processes that have a sequence, and of those that have heads together.

    Processes that have heads together are neighbours, as they send most.
    """

    replicas: int
    shards: int
    context: int
    tensor: int


def _layout(parallel: ParallelConfig, count: int) -> _Layout:
    """Return how so many processes are laid out.

    Raises:
        ConfigError: they do not multiply to the number of processes.
    """
    replicas, shards, context, tensor = (
        parallel.data_replicate, parallel.data_shard, parallel.context, parallel.tensor
    )  # fmt: skip
    if shards == -1:
        shards = max(1, count // (replicas * context * tensor))
    if replicas * shards * context * tensor != count:
        stated = "" if parallel.data_shard == -1 else f" times training.parallel.data_shard {shards}"
        stated += "" if context == 1 else f" times training.parallel.context {context}"
        stated += "" if tensor == 1 else f" times training.parallel.tensor {tensor}"
        raise ConfigError(
            f"training.parallel.data_replicate: {replicas}{stated} must make the number of processes, which is {count}"
        )
    return _Layout(replicas, shards, context, tensor)


@functools.cache  # every mesh makes process groups, which stay
def _mesh(device_type: str, layout: _Layout) -> DeviceMesh:
    return init_device_mesh(device_type, layout, mesh_dim_names=("dp_replicate", "dp_shard", "cp", "tp"))


@functools.cache
def _files() -> dist.ProcessGroup:
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo"))


@functools.cache
def _spreading(mesh: DeviceMesh) -> Meshes:
    around = _joined(mesh, ("dp_shard", "cp", "tp"))
    if mesh["tp"].size() == 1:
        return Meshes(around, around, None)
    # It warns of what it sends along two dimensions, one after the other: norms, and weights that are put together.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    return Meshes(around, _joined(mesh, ("dp_shard", "cp")), mesh["tp"])


def _joined(mesh: DeviceMesh, names: tuple[str, ...]) -> DeviceMesh:
    """Return the dimensions of these names as one, behind replicas, if there are any."""
    several = tuple(name for name in names if mesh[name].size() > 1) or names[:1]
    name = "_".join(several)
    joined = mesh[several]._flatten(name) if len(several) > 1 else mesh[name]
    if mesh["dp_replicate"].size() == 1:
        return joined
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Slicing a flattened dim")  # there is no other way that torch 2.11 has too
        return mesh["dp_replicate", name]
