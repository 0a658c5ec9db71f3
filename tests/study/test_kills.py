"""A study that is killed at any moment comes to what an undisturbed one does; `make faults` tries many more."""

import os

import pytest

from ..faults.kinds import kill
from ..faults.runs import StudyBench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> StudyBench:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("page", "report"):
            patch.setattr(f"zoo.study.{module}.render", None)  # which is put back in the end
        yield StudyBench(tmp_path_factory.mktemp("study"), 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="takes processes that begin with all imported")
@pytest.mark.parametrize("case", range(3))
def test_a_killed_study_comes_to_what_an_undisturbed_one_does(case: int, bench: StudyBench) -> None:
    assert kill(bench) == "", f"case {case} of seed 0"
