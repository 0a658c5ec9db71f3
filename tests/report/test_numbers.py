import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.report.numbers import count, difference, duration, size

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
