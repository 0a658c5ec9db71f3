"""Pictures: two themes, a figure as a file, and lines over lengths in panels side by side.

Needs matplotlib. Figures are drawn without pyplot, so that no window opens and a caller's own plots are left alone.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import Literal, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from zoo.report.files import replace_file
from zoo.report.numbers import short_length

__all__ = [
    "DARK", "LIGHT", "Format", "Lines", "Panel", "Theme", "color_labels", "draw_lines", "draw_panels", "encode",
    "label_ends", "prepare_axes", "write_plot",
]  # fmt: skip

Format = Literal["pdf", "png", "svg"]
Lines = Mapping[str, Mapping[int, float]]
"""For each line its name and its values by length."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; those of the variants can be told apart by colour-blind people."""

    background: str
    text: str
    faint: str
    grid: str
    variants: tuple[str, ...]


# The palette of Okabe and Ito, and as many more where there is more to tell apart; on dark, they are lightened.
LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    faint="#59636e",
    grid="#e4e8ec",
    variants=(
        *("#0072b2", "#d55e00", "#009e73", "#cc5fa0", "#b57f00", "#3d9fd6", "#6b6b6b"),
        *("#7a3e9d", "#8c2d04", "#5a7d00", "#c2185b", "#00767f", "#3f51b5", "#9a7b4f"),
    ),
)
DARK = Theme(
    background="#161b22",
    text="#e6edf3",
    faint="#9aa4af",
    grid="#2b323b",
    variants=(
        *("#58a6e8", "#f0813a", "#2cc79b", "#e58fc0", "#e6b422", "#8fd0f5", "#b0b0b0"),
        *("#b98ae0", "#c98a5e", "#a9cf4a", "#ff6f9c", "#4fd3de", "#98a6ff", "#d6bf9a"),
    ),
)
_MARKERS = "osD^vPX"
_LETTERS = 12  # of a title in an inch


class Panel(NamedTuple):
    """One set of axes over lengths."""

    title: str
    lines: Lines
    label: str = ""
    """Of the vertical axis."""
    logarithmic: bool = False
    """Whether the vertical axis is, rather than to begin at 0."""


def encode(draw: Callable[[], Figure], format: Format) -> bytes:
    """Return a figure as a file, the same bytes each time.

    It is drawn within, where no style file of the user's own fights with the theme.
    """
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }[format]
    buffer = io.BytesIO()
    with style.context(["default", {"svg.hashsalt": "zoo", "svg.fonttype": "path"}]):
        draw().savefig(buffer, format=format, metadata=metadata)
    return buffer.getvalue()


def prepare_axes(axes: Axes, title: str, theme: Theme) -> None:
    """Give axes a title and the theme's colours, before anything is plotted."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=theme.text, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(which="both", colors=theme.faint, labelsize=9)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def color_labels(axes: Axes, theme: Theme) -> None:
    """Give the labels of both axes the theme's colour."""
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.text, fontsize=9.5)


def write_plot(path: Path, draw: Callable[[], Figure]) -> None:
    """Write a figure as its file's name says, to standard output as a PNG.

    Raises:
        TrainingError: the file cannot be written.
    """
    replace_file(path, encode(draw, "svg" if path.suffix == ".svg" else "png"))


def draw_panels(rows: Sequence[Sequence[Panel]], axis: str, title: str) -> Figure:
    """Draw rows of equally many panels over lengths, each line in the same colour everywhere, and name them below.

    Args:
        rows: of panels; at least one of them has a line.
        axis: the name of the horizontal axes.
        title: one or more lines above all panels.
    """
    size = (1.4 + 3.6 * len(rows[0]), 1.1 + 3.2 * len(rows))
    figure = Figure(figsize=size, layout="constrained", dpi=160, facecolor=LIGHT.background)
    grid = figure.subplots(
        len(rows), len(rows[0]), squeeze=False, sharex="col", subplot_kw={"facecolor": LIGHT.background}
    )
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.lines))
    for panels, line in zip(rows, grid, strict=True):
        for panel, axes in zip(panels, line, strict=True):
            prepare_axes(axes, panel.title, LIGHT)
            draw_lines(axes, panel.lines, names)
            axes.set(xlabel=axis, ylabel=panel.label)
            if panel.logarithmic:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            color_labels(axes, LIGHT)
    handles = {drawn.get_label(): drawn for axes in grid.flat for drawn in axes.lines}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(5, len(names)), frameon=False,
        fontsize=9.5, labelcolor=LIGHT.text,
    )  # fmt: skip
    lines = [part for line in title.splitlines() for part in wrap(line, round(_LETTERS * size[0]))]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9.5, color=LIGHT.faint)
    return figure


def draw_lines(axes: Axes, lines: Lines, names: Sequence[str]) -> None:
    """Draw lines over lengths, which are told apart by their place in `names`; each length has a tick."""
    axes.set_xscale("log", base=2)
    for index, name in enumerate(names):
        values = dict(sorted(lines.get(name, {}).items()))
        axes.plot(
            list(values), list(values.values()), label=name, color=LIGHT.variants[index % len(LIGHT.variants)],
            marker=_MARKERS[index % len(_MARKERS)], markersize=4, linewidth=1.7,
        )  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(sorted({length for values in lines.values() for length in values})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write (text, y, colour) to the right of the axes, each at its height but none on top of another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    anchors = [float(to_axes.transform((axes.get_xlim()[0], y))[1]) for _, y, _ in ends]
    for (text, _, color), anchor, place in zip(ends, anchors, _spread(anchors, 0.062), strict=True):
        axes.plot([1, 1.03], [anchor, place], transform=axes.transAxes, color=color, linewidth=0.8, clip_on=False)
        axes.text(1.04, place, text, transform=axes.transAxes, color=color, fontsize=9, va="center", parse_math=False)


def _spread(anchors: Sequence[float], gap: float) -> list[float]:
    """Return places from 0 to 1 near `anchors` and in their order, at least `gap` apart while that fits.

    With `place = free + rank * gap`, being far enough apart is `free` not falling with the rank: an isotonic
    regression, which pools neighbours that would fall and gives them their mean.
    """
    gap = min(gap, 1 / max(1, len(anchors) - 1))
    order = sorted(range(len(anchors)), key=lambda index: anchors[index])
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([anchors[index] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    room = 1 - (len(anchors) - 1) * gap
    free = [min(max(fmean(pool), 0), room) for pool in pools for _ in pool]
    places = {index: free[rank] + rank * gap for rank, index in enumerate(order)}
    return [places[index] for index in range(len(anchors))]
