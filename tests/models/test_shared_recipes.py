"""Every recipe, shrunk and compiled whole, with its sequences over several processes: the gradients of one."""

from typing import Any

import pytest

from zoo.recipe import available_recipes

from ..torchrun import run_together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, of all recipes at once: processes take seconds to start."""
    every: list[dict[str, Any]] = run_together(
        request.param, "tests.models.shared_recipes", tmp_path_factory.mktemp("recipes") / "found.json"
    )
    return every


@pytest.mark.parametrize("recipe", available_recipes())
def test_gradients_are_those_of_whole_sequences(found: list[dict[str, Any]], recipe: str) -> None:
    for rank, one in enumerate(found):
        assert one[recipe].keys() == {"plain", "documents"}
        for case, errors in one[recipe].items():
            for name, error in errors.items():
                assert error < 1e-10, f"process {rank}, {case}: {name}"
