"""One process or many: the same training loop, with the parameters sharded when `torchrun` starts several."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from zoo.data import Batch
from zoo.errors import InputError
from zoo.kernels.devices import usable_device

__all__ = ["Processes", "blocks_of", "choose_device", "join_processes", "shard"]


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, as one of them sees them."""

    device: torch.device
    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None
    """None for a single process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

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

    def join(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; as many from each, on the CPU."""
        if self.mesh is None:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def share_of(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch, all of them where they cannot be shared out evenly."""
        rows = len(batch.tokens)
        if rows % self.count:
            return batch
        size = rows // self.count
        return Batch(*(tensor[self.rank * size : (self.rank + 1) * size] for tensor in batch))


@contextmanager
def join_processes(device: torch.device | str | None = None) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or stand alone without it.

    Args:
        device: where this process computes; by default the GPU that is its own, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if count == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # gloo beside nccl: checkpoints gather tensors on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, dist.get_rank(), count, init_device_mesh(chosen.type, (count,)))
    finally:
        dist.destroy_process_group()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the model's layers: the members of every list of modules it has directly."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


def shard(model: nn.Module, mesh: DeviceMesh, *, compiled: bool) -> None:
    """Spread parameters, gradients and optimiser state over the mesh, layer by layer, in place.

    Args:
        compiled: whether each layer is compiled; gathering its parameters stays outside of the graph.
    """
    for block in blocks_of(model):
        if compiled:
            block.compile(fullgraph=True, dynamic=False)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "score"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


def choose_device(name: torch.device | str | None) -> torch.device:
    """Return the device of that name, of several GPUs the one that is this process's; None: a GPU, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None:
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    device = usable_device(name)
    if device.type == "meta":
        raise InputError("device: must be one that computes, such as 'cpu', got 'meta'")
    return torch.device("cuda", local) if device.type == "cuda" and device.index is None else device
