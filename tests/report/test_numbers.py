import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.report.numbers import (
    clock,
    count,
    difference,
    duration,
    known,
    milliseconds,
    ratio_text,
    short_length,
    size,
)

_FACTORS = {unit: 1000**power for power, unit in enumerate(["", "k", "M", "G", "T", "P", "E"])} | {
    unit: 1024**power for power, unit in enumerate([" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (1.2e6, "1.20M"),
        (3e20, "300E"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1000, "1000 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (100 * 2**20, "100 MiB"), (2**60, "1024 PiB")],
)
def test_size(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.418, "0.42 s"),
        (59.96, "60.0 s"),
        (119.4, "119 s"),
        (119.5, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_difference() -> None:
    assert [difference(value, 1000) for value in (1000, 1004, 995)] == ["±0%", "+0.40%", "−0.50%"]  # noqa: RUF001


@given(st.floats(0, 1e20), st.sampled_from([count, size]))
def test_a_number_is_written_to_three_digits(value: float, write: "type[count]") -> None:
    number, unit = re.fullmatch(r"([\d.]+)(.*)", write(value)).groups()
    assert float(number) * _FACTORS[unit] == pytest.approx(value, rel=0.0051, abs=0.0051)


def test_numbers_are_short() -> None:
    assert [milliseconds(value) for value in (4.2e-5, 1.234e-3, 0.0123, 1.2345)] == ["0.042", "1.23", "12.3", "1,234"]
    assert [short_length(tokens) for tokens in (1000, 1024, 1536, 65536, 2**21)] == ["1000", "1k", "1536", "64k", "2M"]


def test_what_is_not_known_is_a_dash() -> None:
    assert [known(None, ".1f"), known(3 * 2**29, ".1f", 2**30), known(1234.5, ",.0f")] == ["-", "1.5", "1,234"]
    assert known(2.0, ".1f", None) == "-"


def test_time_left_is_read_from_a_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 390, 3661)] == ["0:00", "1:00", "6:30", "61:01"]


@given(st.floats(1e-4, 1e4))
def test_ratio_text_is_within_a_tenth(value: float) -> None:
    left, right = (float(side.replace(",", "")) for side in ratio_text(value).split(":"))
    assert 1 in (left, right)
    assert left / right == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1:1"), (0.98, "1:1"), (1.04, "1:1"), (1.87, "1.9:1"), (4.96, "5:1"), (7.84, "8:1"),
        (1 / 4.9, "1:4.9"), (1 / 8.16, "1:8"), (1 / 124.6, "1:125"), (12_345, "12,345:1"),
    ],
)  # fmt: skip
def test_ratio_text(value: float, text: str) -> None:
    assert ratio_text(value) == text
