"""How well the code reads, by counts that may only grow better (`python tests/house.py` says where)."""

import re

import pytest

from .house import ROOT, counts, modules

AT_MOST = {
    "functions of more than 8 parameters in kernels": 20,
    "calls with 9 or more arguments by place in kernels": 15,
    "files of zoo/bench": 15,
    "lines of zoo/bench": 2_000,
}
AT_LEAST = {"comments on 100 lines of code in kernels/power/triton/hopper": 10}


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return counts()


def test_every_count_has_a_limit(found: dict[str, float]) -> None:
    assert found.keys() == AT_MOST.keys() | AT_LEAST.keys()


@pytest.mark.parametrize("what", AT_MOST)
def test_is_no_more(found: dict[str, float], what: str) -> None:
    assert found[what] <= AT_MOST[what]


@pytest.mark.parametrize("what", AT_LEAST)
def test_is_no_less(found: dict[str, float], what: str) -> None:
    assert found[what] >= AT_LEAST[what]


def test_make_runs_every_test_of_a_gpu() -> None:
    (places,) = re.findall(r"^ON_GPU := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for path in modules("tests"):
        if re.search(r"pytest\.mark\.gpu", path.read_text()):
            assert any(path.is_relative_to(ROOT / place) for place in places.split()), path
