"""Tables, crossovers and the plot of `zoo bench op`, from measurements as a GPU would give them."""

from collections.abc import Callable
from io import BytesIO, StringIO

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from zoo.bench.compare import crossovers, print_comparison
from zoo.bench.engine import OUT_OF_MEMORY, Row
from zoo.bench.op import OpBenchmark
from zoo.bench.subjects import BOTH, FORWARD
from zoo.report.plots import LIGHT, draw_panels, encode

MakeRows = Callable[..., list[Row]]


@pytest.fixture
def rows(make_rows: MakeRows) -> list[Row]:
    """All that a full run has, at its widest."""
    return [
        *make_rows("power", seconds=2e-7),
        *make_rows("softmax-cudnn", quadratic=True),
        *make_rows("softmax-flash", quadratic=True, seconds=2e-7, limit=262144),
        *make_rows("retention", seconds=3e-7, lengths=(1024, 4096, 16384, 65536, 262144)),
        *make_rows("retention", lengths=(1048576,), absent=OUT_OF_MEMORY),
        *make_rows("fla", absent="has only p = 1"),
    ]


def print_(rows: list[Row]) -> str:
    console = Console(file=StringIO(), width=80, record=True)
    print_comparison(rows, console)
    return console.export_text()


def test_tables_fit_into_eighty_columns(rows: list[Row], make_rows: MakeRows) -> None:
    fla = make_rows("fla", seconds=1e-6)
    text = print_([*(row for row in rows if row.name != "fla"), *fla])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["tokens", "power", "cudnn", "flash", "retention", "fla", "/s", "matmul", "copy", "MiB"] in lines
    assert ["4k", "2.46", "1.23", "2.46", "3.69", "12.3", "312.5", "39.6", "12.3", "117"] in lines
    assert "out of" in text


def test_who_is_absent_is_no_column_and_said_once(rows: list[Row]) -> None:
    text = print_(rows)
    lines = [line.rstrip() for line in text.splitlines()]
    assert [line for line in lines if "fla" in line.replace("flash", "")] == ["fla: has only p = 1"]
    assert "retention: out of memory" not in text


def test_who_stops_at_a_length_is_said(make_rows: MakeRows) -> None:
    broken = make_rows("retention", lengths=(262144, 1048576), absent="an illegal memory access")
    text = print_([*make_rows("power"), *make_rows("retention", lengths=(1024, 4096, 16384, 65536)), *broken])
    assert "retention from T = 262,144 on: an illegal memory access" in text
    assert "failed" in text


def test_tables_without_our_op_have_no_rates(make_rows: MakeRows) -> None:
    assert "TFLOP" not in print_(make_rows("fla"))


def test_crossovers_tell_from_where_on(make_rows: MakeRows) -> None:
    power = make_rows("power", seconds=1e-7)
    both = [row for row in power if row["passes"] == BOTH]
    quadratic = [row for row in make_rows("softmax-cudnn", quadratic=True, limit=65536) if row["passes"] == BOTH]
    assert crossovers([*both, *quadratic]) == [
        "power is faster than softmax-cudnn from T = 16,384 tokens on, 16.0 times at 64k"
    ]
    faster = [row for row in make_rows("fla", seconds=5e-8) if row["passes"] == BOTH]
    assert crossovers([*both, *faster]) == ["power is not faster than fla at T = 1,048,576 tokens: 0.50 times"]
    assert crossovers([*both, *make_rows("fla", absent="not installed")]) == []


def test_the_plot_has_a_panel_a_pass_and_a_colour_a_contestant(
    rows: list[Row], make_rows: MakeRows, make_benchmark: Callable[..., OpBenchmark]
) -> None:
    rows = [*rows, *make_rows("power", p=1), *make_rows("fla", p=1)]
    panels = make_benchmark("power").panels(rows)
    assert [[panel.title for panel in line] for line in panels] == [
        [f"K = 128, p = {p}, {passes}" for passes in (FORWARD, BOTH)] for p in (1, 2)
    ]

    def draw() -> Figure:
        return draw_panels(panels, "tokens", "a GPU")

    image = imread(BytesIO(encode(draw, "png")), format="png")[..., :3]
    for color in LIGHT.variants[:5]:
        assert int((abs(image - to_rgb(color)).max(axis=-1) < 0.02).sum()) > 300
    assert encode(draw, "svg") == encode(draw, "svg")
