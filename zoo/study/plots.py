"""The plots of a study: loss by tokens, by FLOPs and by seconds, and the size of the state by context.

Needs matplotlib.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from zoo.report.numbers import size
from zoo.report.plots import Format, Theme, color_labels, encode, label_ends, prepare_axes
from zoo.report.thinning import evenly
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["PLOTS", "Plot", "color_of", "plots_of", "render"]


_POINTS_OF_A_CURVE = 300
_POINTS_OF_A_PLOT = 3_000  # of all curves together, which bounds the size of the page
_MARKED_POINTS = 40
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


@dataclass(frozen=True)
class Plot:
    """One figure of a study."""

    name: str
    """Of the file, without its ending."""
    title: str
    note: str
    """What a reader should know who sees it for the first time."""
    fill: Callable[[Axes, StudySummary, Theme], None]


def color_of(variant: VariantSummary, summary: StudySummary, theme: Theme) -> str:
    """Return the colour of a variant, the same in every plot; after seven they come again, with other dashes."""
    return theme.variants[summary.planned.index(variant.name) % len(theme.variants)]


def render(plot: Plot, summary: StudySummary, theme: Theme, format: Format) -> bytes:
    """Draw one plot of a study with at least one variant, the same bytes each time.

    A PNG is about 1,120 by 780 pixels; the text of an SVG is drawn, so that it looks the same everywhere.
    """
    return encode(partial(_draw, plot, summary, theme), format)


def _draw(plot: Plot, summary: StudySummary, theme: Theme) -> Figure:
    figure = Figure(figsize=(5.6, 3.9), layout="constrained", dpi=200, facecolor=theme.background)
    axes = figure.add_subplot(facecolor=theme.background)
    prepare_axes(axes, plot.title, theme)
    plot.fill(axes, summary, theme)
    color_labels(axes, theme)
    return figure


def _fill_loss(axes: Axes, summary: StudySummary, theme: Theme, *, quantity: str, label: str) -> None:
    """Plot the validation losses, and the training losses faintly behind, over one of a curve's quantities."""
    low, high = _loss_range(summary)
    longest = max(getattr(variant.validation, quantity)[-1] for variant in summary.variants) or 1
    ends = [("bigram", summary.bigram_bits, theme.faint)]
    axes.axhline(summary.bigram_bits, color=theme.faint, linewidth=1.1, dashes=(5, 3))
    points = max(2, min(_POINTS_OF_A_CURVE, _POINTS_OF_A_PLOT // len(summary.variants)))
    for variant in summary.variants:
        color = color_of(variant, summary, theme)
        validation, training = variant.validation, variant.training
        places, bits = (evenly(each, points) for each in (getattr(validation, quantity), validation.bits))
        behind = (evenly(each, points) for each in (getattr(training, quantity), training.bits))
        axes.plot(*behind, color=color, linewidth=0.6, alpha=0.4)
        marker = "o" if len(places) <= _MARKED_POINTS else ""
        axes.plot(places, bits, marker=marker, markersize=2.6, **_line(variant, summary, theme))
        if len(variant.chosen) > 1:
            below, above = (evenly(each.bits, points) for each in variant.validation_range)
            axes.fill_between(places, below, above, color=color, alpha=0.18, linewidth=0)
        axes.plot([places[-1], longest], 2 * [variant.final_bits], color=color, linewidth=0.6, linestyle=":")
        ends.append((variant.name, variant.final_bits, color))
    axes.set(xlim=(0, longest), ylim=(low, high), xlabel=label, ylabel=f"validation loss ({summary.unit})")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label_ends(axes, [(f"{_short(name)} {bits:.3f}", bits, color) for name, bits, color in ends])


def _loss_range(summary: StudySummary) -> tuple[float, float]:
    """Return limits that show the differences at the end, rather than the fall from the first step's loss."""
    highest = max(summary.bigram_bits, *(variant.final_bits for variant in summary.variants))
    lowest = min(summary.bigram_bits, *(variant.best_bits for variant in summary.variants))
    span = highest - lowest or 1.0
    return lowest - 0.06 * span, highest + 0.3 * span


def _fill_rates(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the final loss of every run over its learning rate, and a line through the means."""
    axes.set_xscale("log")
    ends = []
    for variant in summary.variants:
        means = {rate: fmean(run.final_bits for run in variant.at(rate)) for rate in variant.learning_rates}
        axes.plot(*zip(*means.items(), strict=True), **_line(variant, summary, theme))
        color = color_of(variant, summary, theme)
        points = [(run.learning_rate, run.final_bits) for run in variant.runs]
        axes.plot(*zip(*points, strict=True), color=color, linestyle="", marker="o", markersize=3, alpha=0.5)
        axes.plot(variant.learning_rate, means[variant.learning_rate], color=color, marker="D", markersize=5)
        ends.append((f"{_short(variant.name)} {variant.learning_rate:g}", means[variant.learning_rates[-1]], color))
    axes.set(xlabel="peak learning rate", ylabel=f"final validation loss ({summary.unit})")
    rates = sorted({rate for variant in summary.variants for rate in variant.learning_rates})
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    label_ends(axes, ends)


def _fill_state(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the bytes of a decoding state over the context; of equal lines, the later are dashes on the earlier."""
    contexts = summary.state_contexts
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    seen: list[tuple[int, ...]] = []
    for variant in summary.variants:
        line = _line(variant, summary, theme)
        if shared := seen.count(variant.state_bytes):
            line |= {"dashes": (4, 4 * shared), "dash_capstyle": "butt"}
        axes.plot(contexts, variant.state_bytes, **line)
        seen.append(variant.state_bytes)
    sizes = [byte_count for variant in summary.variants for byte_count in variant.state_bytes]
    axes.set(xlim=(contexts[0], contexts[-1] * 1.0001), ylim=(max(1, min(sizes)) / 1.5, max(1, max(sizes)) * 1.5))
    axes.set(xlabel="context (tokens)", ylabel="state of one sequence")
    axes.xaxis.set_major_locator(FixedLocator(contexts))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    label_ends(
        axes,
        [
            (f"{_short(each.name)} {size(each.state_bytes[-1])}", each.state_bytes[-1], color_of(each, summary, theme))
            for each in summary.variants
        ],
    )


def _line(variant: VariantSummary, summary: StudySummary, theme: Theme) -> dict[str, Any]:
    dashes = _DASHES[summary.planned.index(variant.name) // len(theme.variants) % len(_DASHES)]
    return {"color": color_of(variant, summary, theme), "linewidth": 1.6} | ({"dashes": dashes} if dashes else {})


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


PLOTS = (
    Plot(
        "loss-by-tokens",
        "Loss by tokens",
        "What each mixer learns from the same text. Faint: training loss.",
        partial(_fill_loss, quantity="tokens", label="training tokens"),
    ),
    Plot(
        "loss-by-flops",
        "Loss by computation",
        "What each mixer learns from the same number of operations.",
        partial(_fill_loss, quantity="flops", label="training FLOPs (forward and backward)"),
    ),
    Plot(
        "loss-by-seconds",
        "Loss by time",
        "What each mixer learns in the same time on this machine, compilation and evaluation left out.",
        partial(_fill_loss, quantity="seconds", label="training time (s)"),
    ),
    Plot(
        "state-by-context",
        "State by context",
        "Memory that one sequence needs while decoding. Equal states lie on one line, dashed in turn.",
        _fill_state,
    ),
)

_RATES = Plot(
    "loss-by-rate",
    "Loss by learning rate",
    "What each mixer comes to at each rate; the best one is marked. A best rate at the edge may not be the best.",
    _fill_rates,
)


def plots_of(summary: StudySummary) -> tuple[Plot, ...]:
    """Return the plots that a study has."""
    tried = max((len(variant.learning_rates) for variant in summary.variants), default=1)
    return (*PLOTS, _RATES) if tried > 1 else PLOTS
