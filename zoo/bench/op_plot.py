"""Time by length of all contestants: a row of panels for each head width and power, a column for each pass.

Needs matplotlib.
"""

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from zoo.bench.entrant import BOTH, FORWARD
from zoo.bench.op import OpMeasurement
from zoo.report.numbers import short_length
from zoo.report.plots import LIGHT, color_labels, encode, prepare_axes

__all__ = ["draw_times"]

_MARKERS = "osD^vPX"


def draw_times(measurements: Sequence[OpMeasurement], title: str, format: Literal["png", "svg"]) -> bytes:
    """Return the plot of at least one time as a file; both axes are logarithmic, and absent times leave gaps."""
    return encode(lambda: _draw(measurements, title), format)


def _draw(measurements: Sequence[OpMeasurement], title: str) -> Figure:
    panels = sorted({(row.head_width, row.p) for row in measurements})
    names = list(dict.fromkeys(row.contestant for row in measurements if row.seconds is not None))
    figure = Figure(figsize=(9.6, 1.1 + 3.2 * len(panels)), layout="constrained", dpi=160, facecolor=LIGHT.background)
    grid = figure.subplots(len(panels), 2, squeeze=False, sharex=True, subplot_kw={"facecolor": LIGHT.background})
    for (head_width, p), line in zip(panels, grid, strict=True):
        for passes, axes in zip((FORWARD, BOTH), line, strict=True):
            prepare_axes(axes, f"K = {head_width}, p = {p}, {passes}", LIGHT)
            rows = [row for row in measurements if (row.head_width, row.p, row.passes) == (head_width, p, passes)]
            _fill(axes, rows, names)
            color_labels(axes, LIGHT)
    handles = {line.get_label(): line for axes in grid.flat for line in axes.lines}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=len(names), frameon=False,
        fontsize=9.5, labelcolor=LIGHT.text,
    )  # fmt: skip
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=LIGHT.faint)
    return figure


def _fill(axes: Axes, rows: Sequence[OpMeasurement], names: Sequence[str]) -> None:
    """One line a contestant, of the same colour in every panel."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for index, name in enumerate(names):
        times = {row.tokens: 1e3 * row.seconds for row in rows if row.contestant == name and row.seconds is not None}
        axes.plot(
            list(times), list(times.values()), label=name, color=LIGHT.variants[index % len(LIGHT.variants)],
            marker=_MARKERS[index % len(_MARKERS)], markersize=4, linewidth=2.2 if index == 0 else 1.5,
        )  # fmt: skip
    axes.set(xlabel="tokens", ylabel="milliseconds")
    axes.xaxis.set_major_locator(FixedLocator(sorted({row.tokens for row in rows})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
