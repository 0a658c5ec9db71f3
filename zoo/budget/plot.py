"""Weight-state FLOP ratio by context, a line for each mixer. Needs matplotlib."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from zoo.budget.wsfr import RatioTable
from zoo.report.numbers import ratio_text
from zoo.report.plots import LIGHT, color_labels, draw_lines, prepare_axes

__all__ = ["draw_ratios"]


def draw_ratios(table: RatioTable) -> Figure:
    """Draw a table; both axes are logarithmic, and 1:1 is a line of its own."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained", dpi=160, facecolor=LIGHT.background)
    axes = figure.add_subplot(facecolor=LIGHT.background)
    prepare_axes(axes, f"Weight-state FLOP ratio of {table.recipe} ({table.accounting})", LIGHT)
    lines = {row.label: {ratio.context: ratio.value for ratio in row.ratios} for row in table.rows}
    draw_lines(axes, lines, list(lines))
    axes.set_yscale("log")
    axes.set(xlabel="context (tokens)", ylabel="FLOPs of weights : FLOPs of state")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: ratio_text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    color_labels(axes, LIGHT)
    figure.legend(
        handles=list(axes.lines), loc="outside lower left", ncols=2, frameon=False, fontsize=9, labelcolor=LIGHT.text
    )
    axes.axhline(1, color=LIGHT.faint, linewidth=1.1, dashes=(5, 3))
    return figure
