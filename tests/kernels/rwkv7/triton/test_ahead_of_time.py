"""The kernels build for GPUs that are not here, and take what they are allowed on the one they are made for."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ...power.triton.ahead_of_time import HOPPER, HOPPER_SHARED, build, usage
from .ahead_of_time import launches

CASES: dict[str, dict[str, Any]] = {
    "bounded decays, N=64": {"N": 64},
    "any decays, N=64": {"N": 64, "base": 1},
    "bounded decays, N=128": {"N": 128},
}
BUDGET = yaml.safe_load(Path(__file__).with_name("budget.yaml").read_text())


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "bounded decays, N=64" else pytest.mark.slow) for case in CASES]
)
def test_registers_and_spills_stay_within_budget(case: str) -> None:
    for name, launch in launches(**CASES[case]).items():
        found, allowed = usage(build(launch, HOPPER)), BUDGET[case][name]
        assert found.registers <= allowed["registers"], (name, found)
        assert found.stack <= allowed["spilled"], (name, found)
        assert found.shared <= HOPPER_SHARED, (name, found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("N", [64, 128])
@pytest.mark.parametrize("base", [1, 128])
def test_builds_within_shared_memory(N: int, base: int, dtype: torch.dtype) -> None:
    for name, launch in launches(N, base=base, dtype=dtype).items():
        assert build(launch, HOPPER).metadata.shared <= HOPPER_SHARED, name
