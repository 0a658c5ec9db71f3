"""The law of several processes that have one sequence together: their outputs, joined, are those of one call.

So are all gradients, which alone would tell a state that is not passed on: a loss hardly changes without.
"""

from typing import Any

import pytest

from ..torchrun import run_together
from .test_laws import VARIANTS

COMPILED = {
    2: ("softmax", "gated-power", "gated-delta", "mamba2"),
    4: ("window of 3 with sinks", "power, offset", "window behind a token shift", "gla", "kda", "delta-power", "rwkv7"),
}
"""By the number of processes: every kind of exchange, and the rest where there is time."""


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, of all mixers at once: processes take seconds to start."""
    every: list[dict[str, Any]] = run_together(
        request.param, "tests.mixers.shares", tmp_path_factory.mktemp("shares") / "found.json", *COMPILED[request.param]
    )
    return every


@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_of_a_sequence_are_one_call(found: list[dict[str, Any]], variant: str) -> None:
    cases = {"plain", "documents", "states", "padded"}
    cases |= {"compiled", "compiled, padded"} if variant in COMPILED[len(found)] else set()
    for rank, one in enumerate(found):
        assert one[variant].keys() == cases
        for case, errors in one[variant].items():
            for name, error in errors.items():
                assert error < 1e-10, f"process {rank}, {case}: {name}"
