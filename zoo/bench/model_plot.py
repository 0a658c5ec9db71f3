"""Training speed, share of the matrix product's rate, and memory by context length, a line for each mixer.

Needs matplotlib.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from zoo.bench.model import ModelMeasurement
from zoo.report.numbers import short_length
from zoo.report.plots import LIGHT, color_labels, encode, prepare_axes

__all__ = ["draw_lines", "draw_model"]

_MARKERS = "osD^vPX"
Points = dict[str, dict[int, float]]
"""For each line its name and its values by length."""


def draw_model(measurements: Sequence[ModelMeasurement], title: str, format: Literal["png", "svg"]) -> bytes:
    """Return the plot of at least one measurement as a file."""
    panels: dict[str, Callable[[ModelMeasurement], float | None]] = {
        "thousand tokens/s": lambda row: None if row.tokens_per_second is None else row.tokens_per_second / 1e3,
        "% of a matrix product": lambda row: None if row.model_flops_share is None else 100 * row.model_flops_share,
        "peak GiB": lambda row: None if row.peak_bytes is None else row.peak_bytes / 2**30,
    }
    points = {name: _points(measurements, value) for name, value in panels.items()}
    return draw_lines({name: lines for name, lines in points.items() if lines}, "tokens", title, format)


def draw_lines(panels: dict[str, Points], axis: str, title: str, format: Literal["png", "svg"]) -> bytes:
    """Return panels side by side as a file, each with a line for each name, over lengths."""
    return encode(lambda: _draw(panels, axis, title), format)


def _points(measurements: Sequence[ModelMeasurement], value: Callable[[ModelMeasurement], float | None]) -> Points:
    points: Points = {}
    for row in measurements:
        y = value(row)
        if y is not None:
            points.setdefault(row.mixer if row.compiled else f"{row.mixer}, eager", {})[row.tokens] = y
    return points


def _draw(panels: dict[str, Points], axis: str, title: str) -> Figure:
    figure = Figure(figsize=(1.4 + 3.6 * len(panels), 4.0), layout="constrained", dpi=160, facecolor=LIGHT.background)
    row = figure.subplots(1, len(panels), squeeze=False, subplot_kw={"facecolor": LIGHT.background})[0]
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    for axes, (heading, points) in zip(row, panels.items(), strict=True):
        prepare_axes(axes, heading, LIGHT)
        _fill(axes, points, names, axis)
        color_labels(axes, LIGHT)
    handles = {line.get_label(): line for axes in row for line in axes.lines}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(4, len(names)), frameon=False,
        fontsize=9.5, labelcolor=LIGHT.text,
    )  # fmt: skip
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=LIGHT.faint)
    return figure


def _fill(axes: Axes, points: Points, names: list[str], axis: str) -> None:
    """One line a name, of the same colour in every panel."""
    axes.set_xscale("log", base=2)
    for index, name in enumerate(names):
        values = dict(sorted(points.get(name, {}).items()))
        axes.plot(
            list(values), list(values.values()), label=name, color=LIGHT.variants[index % len(LIGHT.variants)],
            marker=_MARKERS[index % len(_MARKERS)], markersize=4, linewidth=1.8,
        )  # fmt: skip
    axes.set(xlabel=axis)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for values in points.values() for x in values})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
