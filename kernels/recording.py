"""What a pass launches, kept for calls of the same shapes: those cost the CPU little more than the launches.

Issued line by line, a pass makes some hundred small Python calls, which take longer than the kernels of a few thousand
tokens. A recording knows how much memory a pass takes, and where in it the arguments of each launch are.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.kernels.launch import Launch, bound, current_stream, rehearsal

__all__ = ["Recorder", "Recording", "record"]

_NUMBERS = frozenset((int, float, bool, type(None)))  # and what is absent: to ask whether it is a tensor takes longer
ALIGNMENT = 256  # bytes, of what kernels take from the memory between them
_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
}


class _Place(NamedTuple):
    """Where an argument of a launch is: in which tensor, and how many bytes from its start."""

    tensor: int  # inputs, then outputs, then the memory between kernels, then nothing
    offset: int


class _Step(NamedTuple):
    run: Callable[..., None]
    places: tuple[_Place, ...]
    numbers: tuple[Any, ...]


class Recording(NamedTuple):
    """A pass: its outputs, how much memory its kernels take from each other, and its launches."""

    outputs: tuple[tuple[torch.Size, torch.dtype], ...]
    memory: int  # bytes
    steps: tuple[_Step, ...]

    def replay(self, addresses: list[int], device: torch.device) -> tuple[Tensor, ...]:
        """Launch it all once more.

        Args:
            addresses: of the inputs.
            device: where they are.
        """
        outputs = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self.outputs)
        memory = torch.empty(self.memory, dtype=torch.uint8, device=device)
        starts = [*addresses, *(x.data_ptr() for x in outputs), memory.data_ptr(), 0]
        stream = current_stream(device)
        for run, places, numbers in self.steps:
            run(*[starts[tensor] + offset for tensor, offset in places], *numbers, stream=stream)
        return outputs


class Recorder:
    """Runs a pass, and from the second call with the same shapes on replays it, where that can be done.

    Args:
        function: takes tensors, absent ones None, and numbers; returns tensors.
        prepare: takes the same, before the first call with its shapes.
        variant: what else launches depend on.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *,
        prepare: Callable[..., None] | None = None,
        variant: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self._function, self._prepare, self._variant = function, prepare, variant
        self._recordings: dict[Hashable, Recording | None] = {}
        self._seen: set[Hashable] = set()

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = [x for x in arguments if type(x) not in _NUMBERS]
        addresses, device = [x.data_ptr() for x in given], given[0].device
        kind = (device, self._variant(), *[x if type(x) in _NUMBERS else (x.shape, x.dtype) for x in arguments])
        as_recorded = not reduce(or_, addresses) % 16 and all(x.is_contiguous() for x in given)
        if kind not in self._seen:
            self._meet(kind, arguments)
        elif as_recorded and kind not in self._recordings:
            self._recordings[kind] = record(self._function, *arguments)
        recording = self._recordings.get(kind) if as_recorded else None
        return self._function(*arguments) if recording is None else recording.replay(addresses, device)

    def _meet(self, kind: Hashable, arguments: Sequence[Any]) -> None:
        if len(self._seen) > 1000:  # of lengths that vary
            self._seen.clear()
            self._recordings.clear()
        self._seen.add(kind)
        if self._prepare is not None:
            self._prepare(*arguments)


class _Watch(TorchDispatchMode):
    """Whether all that happens is that memory is taken, and looked at in other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.launches_alone = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func.namespace == "prim"  # for a device
        if func not in _ALLOCATIONS and not func.is_view and not asks:
            self.launches_alone = False
        return func(*args, **(kwargs or {}))


def record(function: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> Recording | None:
    """Run a pass on fake tensors, and write down what it launches; None where it does anything but launch.

    Args:
        function: takes tensors and numbers; returns tensors.
        arguments: those; tensors are contiguous, absent ones None.
    """
    with FakeTensorMode(), rehearsal() as launches:
        fakes = [_fake(x) if isinstance(x, Tensor) else x for x in arguments]
        with _Watch() as watch:
            outputs = function(*fakes)
    ends = [*(x for x in fakes if isinstance(x, Tensor)), *outputs]
    named = {_storage(x): number for number, x in enumerate(ends) if x.numel()}
    shared = len(named) < sum(x.numel() > 0 for x in ends)
    runs = [bound(launch) for launch in launches]
    if not watch.launches_alone or shared or None in runs or not all(map(_is_whole, outputs)):
        return None
    lives, sizes = _lives(launches, named), {_storage(x): _size(x) for each in launches for x in each.tensors}
    offsets, memory = _share(lives, sizes)
    between = len(ends)

    def place(x: Tensor) -> _Place:
        if not x.numel():
            return _Place(between + 1, 0)
        storage, offset = _storage(x), int(x.storage_offset()) * x.element_size()
        if storage in named:
            return _Place(named[storage], offset)
        return _Place(between, offsets[storage] + offset)

    steps = (
        _Step(run, tuple(place(x) for x in each.tensors), (*each.numbers, *each.constants.values()))
        for run, each in zip(runs, launches, strict=True)
    )
    return Recording(tuple((x.shape, x.dtype) for x in outputs), memory, tuple(steps))


def _fake(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _size(x: Tensor) -> int:
    return x.untyped_storage().nbytes()


def _is_whole(x: Tensor) -> bool:
    """Whether x is all of its memory, as a tensor is that was just allocated."""
    return x.is_contiguous() and x.numel() * x.element_size() == _size(x)


def _lives(launches: Sequence[Launch], named: dict[int, int]) -> dict[int, tuple[int, int]]:
    """The first and the last launch that each piece of memory between kernels is for."""
    lives: dict[int, tuple[int, int]] = {}
    for number, launch in enumerate(launches):
        for x in launch.tensors:
            storage = _storage(x)
            if x.numel() and storage not in named:
                lives[storage] = lives.get(storage, (number, number))[0], number
    return lives


def _share(lives: dict[int, tuple[int, int]], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where each piece is, so that those alive at a time do not overlap, and the sum: the largest is placed first."""
    placed: list[tuple[int, int, int]] = []
    offsets: dict[int, int] = {}
    for piece in sorted(lives, key=lambda each: -sizes[each]):
        first, last = lives[piece]
        size = -(-sizes[piece] // ALIGNMENT) * ALIGNMENT
        start = 0
        for other, stop, number in sorted(placed):
            born, dies = lives[number]
            if born <= last and first <= dies and start < stop and other < start + size:
                start = stop
        placed.append((start, start + size, piece))
        offsets[piece] = start
    return offsets, max((stop for _, stop, _ in placed), default=0)
