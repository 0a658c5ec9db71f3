import csv
import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import ConfigError
from zoo.study.results import Curve
from zoo.study.summary import StudySummary


def test_a_summary_survives_json(summary: StudySummary) -> None:
    assert StudySummary.from_json(summary.to_json()) == summary


@given(st.lists(st.tuples(st.integers(0, 2**62), *3 * [st.floats(0, allow_nan=False, allow_infinity=False)])))
def test_a_curve_survives_json(points: list[tuple[int, float, float, float]]) -> None:
    tokens, flops, seconds, bits = ([point[place] for point in points] for place in range(4))
    curve = Curve(tokens=tokens, flops=flops, seconds=seconds, bits=bits)
    assert Curve.model_validate_json(curve.model_dump_json()) == curve


def test_a_curve_has_equally_long_columns() -> None:
    with pytest.raises(ConfigError, match=r"equally long, got \[1, 0, 0, 0\]"):
        Curve(tokens=(1,), flops=(), seconds=(), bits=())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 3}', "[" * 200_000])
def test_something_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^runs/x/summary.json: .*[^\n]*$"):
        StudySummary.from_json(text, "runs/x/summary.json")


def test_csv_has_a_row_for_each_variant_and_the_bigram(summary: StudySummary) -> None:
    rows = list(csv.DictReader(io.StringIO(summary.to_csv())))
    assert [row["variant"] for row in rows] == [*summary.planned, "bigram"]
    assert [float(row["final_bits"]) for row in rows] == [2.214, 2.391, 2.268, 2.197, 3.583]
    assert rows[0]["state_bytes_at_65536"] == str(65536 * 2048)
    assert rows[0]["parameters"] == "1203456"
    assert rows[-1]["parameters"] == ""


def test_what_is_planned_and_not_there_is_unfinished(
    make_summary: Callable[..., StudySummary], make_variant: Callable
) -> None:
    partial = make_summary(make_variant("b"), planned=("a", "b", "c"))
    assert partial.unfinished == ("a", "c")
