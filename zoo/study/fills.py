"""What the plots of a study show: axes are filled from a summary. Needs matplotlib."""

import math
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

from zoo.report.numbers import size
from zoo.report.plots import Theme, label_ends
from zoo.report.thinning import evenly
from zoo.study.colors import color_of, line_of
from zoo.study.summary import StudySummary

__all__ = ["fill_loss", "fill_rates", "fill_state", "short"]

_POINTS_OF_A_CURVE = 300
_POINTS_OF_A_PLOT = 3_000  # of all curves together, which bounds the size of the page
_MARKED_POINTS = 40


def fill_loss(axes: Axes, summary: StudySummary, theme: Theme, *, quantity: str, label: str) -> None:
    """Plot the validation losses, and the training losses faintly behind, over one of a curve's quantities."""
    low, high = _loss_range(summary)
    longest = max(getattr(variant.validation, quantity)[-1] for variant in summary.variants) or 1
    ends = []
    if summary.bigram_bits is not None:
        ends.append(("bigram", summary.bigram_bits, theme.faint))
        axes.axhline(summary.bigram_bits, color=theme.faint, linewidth=1.1, dashes=(5, 3))
    points = max(2, min(_POINTS_OF_A_CURVE, _POINTS_OF_A_PLOT // len(summary.variants)))
    for variant in summary.variants:
        color = color_of(variant.name, summary, theme)
        validation, training = variant.validation, variant.training
        places, bits = (evenly(each, points) for each in (getattr(validation, quantity), validation.bits))
        behind = (evenly(each, points) for each in (getattr(training, quantity), training.bits))
        axes.plot(*behind, color=color, linewidth=0.6, alpha=0.4)
        marker = "o" if len(places) <= _MARKED_POINTS else ""
        axes.plot(places, bits, marker=marker, markersize=2.6, **line_of(variant.name, summary, theme))
        if len(variant.chosen) > 1:
            below, above = (evenly(each.bits, points) for each in variant.validation_range)
            axes.fill_between(places, below, above, color=color, alpha=0.18, linewidth=0)
        axes.plot([places[-1], longest], 2 * [variant.final_bits], color=color, linewidth=0.6, linestyle=":")
        ends.append((variant.name, variant.final_bits, color))
    axes.set(xlim=(0, longest), ylim=(low, high), xlabel=label, ylabel=f"validation loss ({summary.unit})")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label_ends(axes, [(f"{short(name)} {bits:.3f}", bits, color) for name, bits, color in ends])


def _loss_range(summary: StudySummary) -> tuple[float, float]:
    """Return limits that show the differences at the end, rather than the fall from the first step's loss."""
    baseline = [] if summary.bigram_bits is None else [summary.bigram_bits]
    highest = max(*baseline, *(variant.final_bits for variant in summary.variants), -math.inf)
    lowest = min(*baseline, *(variant.best_bits for variant in summary.variants), math.inf)
    span = highest - lowest or 1.0
    return lowest - 0.06 * span, highest + 0.3 * span


def fill_rates(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the final loss of every run over its learning rate, and a line through the means."""
    axes.set_xscale("log")
    ends = []
    for variant in summary.variants:
        means = {rate: fmean(run.final_bits for run in variant.at(rate)) for rate in variant.learning_rates}
        axes.plot(*zip(*means.items(), strict=True), **line_of(variant.name, summary, theme))
        color = color_of(variant.name, summary, theme)
        points = [(run.learning_rate, run.final_bits) for run in variant.runs]
        axes.plot(*zip(*points, strict=True), color=color, linestyle="", marker="o", markersize=3, alpha=0.5)
        axes.plot(variant.learning_rate, means[variant.learning_rate], color=color, marker="D", markersize=5)
        ends.append((f"{short(variant.name)} {variant.learning_rate:g}", means[variant.learning_rates[-1]], color))
    axes.set(xlabel="peak learning rate", ylabel=f"final validation loss ({summary.unit})")
    rates = sorted({rate for variant in summary.variants for rate in variant.learning_rates})
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    label_ends(axes, ends)


def fill_state(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the bytes of a decoding state over the context; of equal lines, the later are dashes on the earlier."""
    contexts = summary.state_contexts
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    seen: list[tuple[int, ...]] = []
    for variant in summary.variants:
        line = line_of(variant.name, summary, theme)
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
            (
                f"{short(each.name)} {size(each.state_bytes[-1])}",
                each.state_bytes[-1],
                color_of(each.name, summary, theme),
            )
            for each in summary.variants
        ],
    )


def short(name: str) -> str:
    """Return a name that has room beside a plot."""
    return name if len(name) <= 20 else f"{name[:19]}…"
