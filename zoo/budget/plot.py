"""Weight-state FLOP ratio by context, a line for each mixer. Needs matplotlib."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from zoo.budget.wsfr import RatioTable, ratio_text
from zoo.report.numbers import short_length
from zoo.study.plots import LIGHT, color_labels, encode, prepare_axes

__all__ = ["draw_ratios"]

_MARKERS = "osD^vPX"


def draw_ratios(table: RatioTable, format: Literal["png", "svg"]) -> bytes:
    """Return the plot as a file; both axes are logarithmic, and 1:1 is a line of its own."""
    return encode(lambda: _draw(table), format)


def _draw(table: RatioTable) -> Figure:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained", dpi=160, facecolor=LIGHT.background)
    axes = figure.add_subplot(facecolor=LIGHT.background)
    prepare_axes(axes, f"Weight-state FLOP ratio of {table.recipe} ({table.accounting})", LIGHT)
    _fill(axes, table)
    color_labels(axes, LIGHT)
    handles = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, labelcolor=LIGHT.text)
    return figure


def _fill(axes: Axes, table: RatioTable) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axhline(1, color=LIGHT.faint, linewidth=1.1, dashes=(5, 3))
    for index, row in enumerate(table.rows):
        axes.plot(
            [ratio.context for ratio in row.ratios], [ratio.value for ratio in row.ratios], label=row.label,
            color=LIGHT.variants[index % len(LIGHT.variants)], marker=_MARKERS[index % len(_MARKERS)], markersize=4,
            linewidth=1.6,
        )  # fmt: skip
    axes.set(xlabel="context (tokens)", ylabel="FLOPs of weights : FLOPs of state")
    axes.xaxis.set_major_locator(FixedLocator(table.contexts))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: ratio_text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
