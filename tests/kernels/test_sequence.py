"""What processes that have one sequence together send one another, with 2 processes, and 3 in the slow profile."""

from typing import Any

import pytest

from ..torchrun import run_together

STATE = 2 * 3 * 10 * (4 + 1) * 4
"""Bytes of the state in `exchanges.received`: 2 rows of 3 heads, 10 rows at p = 2, values and normaliser, float32."""


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    every: list[dict[str, Any]] = run_together(
        request.param, "tests.kernels.exchanges", tmp_path_factory.mktemp("exchanges") / "found.json"
    )
    return every


def test_processes_together_are_one_alone(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        for what, errors in one["errors"].items():
            for name, error in errors.items():
                assert error < 1e-12, f"process {rank}, {what}, {name}"


def test_power_attention_receives_the_state_twice_less_its_own_part(found: list[dict[str, Any]]) -> None:
    processes = len(found)
    padded = STATE * (-(-50 // processes) * processes) / 50
    for one in found:
        for way in ("forward", "backward"):
            assert one["received"][way] == 2 * padded * (processes - 1) / processes, way
        # The state after the last share goes to all in the same way; that before the first is there already.
        assert one["received"]["with states"] == 2 * (padded + STATE) * (processes - 1) / processes
