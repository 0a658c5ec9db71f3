"""Both passes are launched as they were recorded."""

from typing import Any

import pytest
import torch

from zoo.kernels import launch as launch_module
from zoo.kernels.delta.call import Incoming, Inputs, Options
from zoo.kernels.delta.triton import passes
from zoo.kernels.delta.triton.stretches import find_errors
from zoo.kernels.launch import unseen
from zoo.kernels.recording import record
from zoo.kernels.registration import flat
from zoo.kernels.triton_support import INTERPRETED

from ...power.triton.test_recording import Kernels

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

CPU = torch.device("cpu")


@pytest.mark.parametrize("gates", ["none", "head", "channel"])
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("T", [20, 4097])
def test_both_passes_are_recorded(monkeypatch: pytest.MonkeyPatch, gates: str, corrects: bool, T: int) -> None:
    """Also where states come in and are returned."""
    monkeypatch.setattr(launch_module, "_compiled", Kernels(lambda *_, **__: None))
    q, k, v = (torch.zeros(2, T, 2, 64, dtype=torch.bfloat16) for _ in range(3))
    log_g = {"none": None, "head": torch.zeros(2, T, 2), "channel": torch.zeros(2, T, 2, 64)}[gates]
    S, options = torch.zeros(2, 2, 64, 64), Options(1, 0.125, return_state=True, save_errors=True, use_triton=True)
    inputs = Inputs(q, k, v, log_g, torch.zeros(2, T, 2) if corrects else None, S)
    with unseen(CPU):
        outputs = passes.forward(inputs, options)
        incoming = Incoming(torch.zeros_like(outputs.o), torch.zeros_like(S))
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (passes.forward, inputs), (passes.backward, (*incoming, *inputs, *outputs.saved))
        ]  # fmt: skip
        for function, given in calls:
            expected = flat(function)(*given, *options)
            found = record(flat(function), *given, *options)
            assert found is not None
            assert list(found.outputs) == [(x.shape, x.dtype) for x in expected]


@pytest.mark.parametrize(("T", "launches"), [(20, 3), (4097, 4 + 9 + 8 + 8)])
def test_errors_on_a_power_state_are_recorded(monkeypatch: pytest.MonkeyPatch, T: int, launches: int) -> None:
    """Of each stretch two or three, which take as long as their kernels if they are issued anew."""
    monkeypatch.setattr(launch_module, "_compiled", Kernels(lambda *_, **__: None))
    k, v = (torch.zeros(2, T, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    with unseen(CPU):
        given = (k, v, torch.zeros(2, T, 2), torch.zeros(2, T, 2), None, None, 2)
        expected, found = find_errors(*given), record(find_errors, *given)
    assert found is not None
    assert list(found.outputs) == [(x.shape, x.dtype) for x in expected]
    assert len(found.steps) == launches
