"""A recorded pass does what the pass itself does, with memory of its own."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from zoo.kernels import launch as launch_module
from zoo.kernels import recording
from zoo.kernels.launch import launch, unseen
from zoo.kernels.power.call import Incoming, Inputs, Options
from zoo.kernels.power.triton import plan
from zoo.kernels.power.triton.configs import block_sizes, using, wanted
from zoo.kernels.power.triton.passes import backward, forward
from zoo.kernels.recording import Recorder, record
from zoo.kernels.registration import flat
from zoo.kernels.triton_support import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

CPU = torch.device("cpu")


def _floats(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))


def _add(a: int, b: int, out: int, size: int, scale: float, _: bool, stream: int = 0) -> None:
    """A stand-in for a kernel: `out = scale a + b`."""
    _floats(out, size)[:] = scale * _floats(a, size) + _floats(b, size)


class Kernels(dict[Any, Any]):
    """Whatever is asked for is compiled, and is the same kernel, as Triton has one; launches are counted."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, kernel: Callable[..., None]) -> None:
        super().__init__()
        self.kernel, self.launches = kernel, 0

    def get(self, key: Any, default: Any = None) -> Any:
        return self

    def run(self, *arguments: Any) -> None:
        stream, compiled, hooks, rest = arguments[3], arguments[4:6], arguments[6:9], arguments[9:]
        assert compiled == (self.function, self.packed_metadata)
        assert hooks == (None, None, None)
        self.launches += 1
        self.kernel(*rest, stream=stream)

    def __getitem__(self, grid: Any) -> Any:
        def run(*arguments: Any, stream: int = 0) -> None:
            self.run(*grid, stream, self.function, self.packed_metadata, None, None, None, *arguments)

        return run


@pytest.fixture(scope="module", autouse=True)
def _no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_module, "_compiled", Kernels(_add))
        patch.setattr(recording, "current_stream", lambda _: 0)
        yield


class _Named:
    """A kernel as `launch` sees it."""

    arg_names = ("a", "b", "out", "size", "scale", "FLAG")


def _add_tensors(a: Tensor, b: Tensor, out: Tensor, scale: float) -> None:
    launch(_Named, (1,), (a, b, out), (out.numel(), scale), warps=4, FLAG=True)


SIZE = 16
# Each line takes memory of so many rows, and writes a row of it from rows of what came before.
LINES = st.lists(st.tuples(*[st.integers(0, 9)] * 6), min_size=1, max_size=12)


def _program(lines: list[tuple[int, ...]], outputs: int) -> Callable[..., tuple[Tensor, ...]]:
    def run(x: Tensor, y: Tensor | None, scale: float) -> tuple[Tensor, ...]:
        known = [x] if y is None else [x, y]  # each row of these is written
        for kind, rows, first, second, first_row, second_row in lines:
            a, b = known[first % len(known)], known[second % len(known)]
            shape = (1 + rows % 3, SIZE)
            room = [torch.empty(shape), x.new_empty(shape), torch.empty_like(x)[: shape[0]]][kind % 3]
            for row in range(len(room)):
                _add_tensors(a[(first_row + row) % len(a)], b[second_row % len(b)].view(4, 4), room[row], scale + row)
            known.append(room)
        results = []
        for source in known[-outputs:]:
            results.append(torch.empty(SIZE))
            _add_tensors(source[0], x[0], results[-1], 1.0)
        return *results, x.new_empty(0)

    return run


@given(lines=LINES, outputs=st.integers(1, 3), second=st.booleans(), scale=st.sampled_from([0.5, -1.0]))
def test_replayed_as_run(lines: list[tuple[int, ...]], outputs: int, second: bool, scale: float) -> None:
    function = _program(lines, outputs)
    found = record(function, torch.zeros(3, SIZE), torch.zeros(3, SIZE) if second else None, scale)
    assert found is not None
    for seed in range(2):
        torch.manual_seed(seed)
        x, y = torch.randn(3, SIZE), torch.randn(3, SIZE) if second else None
        with unseen(CPU):
            expected = function(x, y, scale)
        actual = found.replay([a.data_ptr() for a in (x, y) if a is not None], CPU)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)


def test_memory_is_used_again() -> None:
    def chain(x: Tensor) -> tuple[Tensor, ...]:
        for _ in range(10):
            room = torch.empty(1 << 10)
            _add_tensors(x, x, room, 1.0)
            x = room
        last = torch.empty(1 << 10)
        _add_tensors(x, x, last, 1.0)
        return (last,)

    found = record(chain, torch.zeros(1 << 10))
    assert found is not None
    assert found.memory == 2 * 4 << 10


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1,),
        lambda x: (torch.empty_like(x).zero_(),),
        lambda x: (x,),
        lambda x: (torch.empty(4, 4)[1:],),
        lambda x: (torch.empty(4, 4).T,),
        lambda x: (torch.empty(4),) * 2,
    ],
)
def test_what_does_more_than_launch_is_not_recorded(function: Callable[..., tuple[Tensor, ...]]) -> None:
    assert record(function, torch.zeros(4)) is None


def test_replayed_from_the_second_call_on() -> None:
    calls = []

    def double(x: Tensor, scale: float) -> tuple[Tensor, ...]:
        calls.append(x)
        out = torch.empty_like(x)
        _add_tensors(x, x, out, scale)
        return (out,)

    met: list[int] = []
    run, x = Recorder(double, prepare=lambda x, _: met.append(x.numel())), torch.arange(8.0)
    with unseen(CPU):
        for _ in range(4):
            assert torch.equal(run(x, 1.0)[0], 2 * x)
        assert len(calls) == 2
        assert torch.equal(run(x, 2.0)[0], 3 * x)  # other options
        assert torch.equal(run(x[:4], 1.0)[0], 2 * x[:4])  # another shape
        for _ in range(3):
            run(x[1:], 1.0)  # not aligned
            run(x.view(2, 4).T, 1.0)  # not contiguous: this function may look at strides
    assert len(calls) == 2 + 2 + 6
    assert met == [8, 8, 4, 7, 8]


def test_other_block_sizes_are_recorded_anew() -> None:
    """`zoo tune` calls the same op with the same tensors, and each time wants other kernels."""

    def scaled(x: Tensor) -> tuple[Tensor, ...]:
        out = torch.empty_like(x)
        sizes = wanted()
        _add_tensors(x, x, out, 1.0 if sizes is None else sizes.chunk)
        return (out,)

    run, x = Recorder(scaled, variant=wanted), torch.ones(8)
    sizes = block_sizes(x, 64, 64, 2, hopper=False)
    with unseen(CPU):
        for chunk in (512, 2048):
            with using(sizes._replace(chunk=chunk)):
                for _ in range(3):
                    assert run(x)[0].tolist() == 8 * [chunk + 1]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("T", [500, 4097])
def test_both_passes_of_the_op_are_recorded(monkeypatch: pytest.MonkeyPatch, T: int, width: int) -> None:
    """As they are called: the same launches, with the same numbers, that take the inputs where they are."""
    monkeypatch.setattr(plan, "supports_hopper", lambda *_: True)
    launched: list[Any] = []
    monkeypatch.setattr(launch_module, "_compiled", Kernels(lambda *x, **_: launched.append(x)))
    q, k, v = (torch.zeros(2, T, 2, width, dtype=torch.bfloat16) for _ in range(3))
    call, options = Inputs(q, k, v, torch.zeros(2, T, 2)), Options(2, 0.125, True, save_states=True, save_output=True)
    with unseen(CPU):
        outputs = forward(call, options)
        incoming = Incoming(torch.zeros_like(outputs.o), None, None)
        passes = [(forward, call), (backward, (*incoming, *call, *outputs.saved(options)))]
        for function, given in passes:
            launched.clear()
            expected = flat(function)(*given, *options)
            direct = list(launched)
            found = record(flat(function), *given, *options)
            assert found is not None
            launched.clear()
            inputs = [x.data_ptr() for x in given if x is not None]
            outputs = found.replay(inputs, CPU)
            assert [(x.shape, x.dtype) for x in outputs] == [(x.shape, x.dtype) for x in expected]
            for a, b in zip(launched, direct, strict=True):
                assert [x for x in a if x in inputs] == [x for x in b if x in inputs]
                assert _numbers(a) == _numbers(b)


def _numbers(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments that are no addresses."""
    return [x for x in arguments if isinstance(x, str) or x < 1 << 30]
