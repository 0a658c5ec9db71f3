"""The kernels build for GPUs that are not here, and take what they are allowed on the one they are made for."""

from typing import Any

import pytest
import torch

from ...power.triton.ahead_of_time import HOPPER, HOPPER_SHARED, build
from .ahead_of_time import check_budget, launches, launches_for_errors

CASES: dict[str, dict[str, Any]] = {
    "gated delta, K=V=64": {"K": 64, "V": 64},
    "a gate a channel, K=V=64": {"K": 64, "V": 64, "gates": "channel"},
    "plain, a gate a channel, K=V=64": {"K": 64, "V": 64, "gates": "channel", "corrects": False},
    "gated delta, K=V=128": {"K": 128, "V": 128},
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case.startswith("gated delta, K=V=64") else SLOW)
                                  for case in CASES])  # fmt: skip
def test_registers_and_spills_stay_within_budget(case: str) -> None:
    check_budget(case, launches(**CASES[case]))


def test_packed_sequences_build() -> None:
    """Of which the interpreter does not mind that two branches give integers of other sizes."""
    for name, launch in launches(64, 64, sequences=5).items():
        if name.startswith(("compose", "states", "output")):
            build(launch, HOPPER)


def test_errors_on_a_power_state_stay_within_budget() -> None:
    check_budget("errors, p=2, K=V=64", launches_for_errors(64, 64, 2))


@pytest.mark.parametrize("width", [64, pytest.param(128, marks=SLOW)])
def test_hoppers_errors_on_a_power_state_stay_within_budget(width: int) -> None:
    check_budget(f"errors on Hopper, p=2, K=V={width}", launches_for_errors(width, width, 2, hopper=True))


@pytest.mark.slow
@pytest.mark.parametrize(("K", "V"), [(64, 64), (64, 128), (128, 64)])
def test_hoppers_errors_on_a_power_state_build(K: int, V: int) -> None:
    for name, launch in launches_for_errors(K, V, 2, sequences=5, hopper=True).items():
        assert build(launch, HOPPER).metadata.shared <= HOPPER_SHARED, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("p", "width"), [(2, 16), (2, 64), (2, 128), (3, 32), (4, 16)])
def test_errors_on_a_power_state_build(p: int, width: int, dtype: torch.dtype) -> None:
    """Also of packed sequences, of which the interpreter does not mind that branches give integers of other sizes."""
    for name, launch in launches_for_errors(width, width, p, dtype=dtype, sequences=5).items():
        assert build(launch, HOPPER).metadata.shared <= HOPPER_SHARED, name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("gates", ["head", "channel"])
@pytest.mark.parametrize("width", [64, 128])
def test_builds_within_shared_memory(width: int, gates: str, dtype: torch.dtype) -> None:
    for name, launch in launches(width, width, gates=gates, dtype=dtype).items():
        assert build(launch, HOPPER).metadata.shared <= HOPPER_SHARED, name
