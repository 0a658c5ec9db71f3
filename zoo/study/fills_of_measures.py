"""Plots of what is measured besides the loss: by position, and the accuracy in a task. Needs matplotlib."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from zoo.report.numbers import short_length, size
from zoo.report.plots import Theme, label_ends
from zoo.study.colors import color_of, line_of
from zoo.study.fills import short
from zoo.study.results import Accuracy, VariantSummary
from zoo.study.summary import StudySummary

__all__ = [
    "accuracies_by",
    "fill_accuracy_by",
    "fill_accuracy_by_state",
    "fill_lengths",
    "fill_positions",
    "losses_by_length",
    "losses_by_position",
    "state_of",
]


def losses_by_position(variant: VariantSummary) -> dict[tuple[int, int], list[float]]:
    """Return, by stretch of positions, the losses of the chosen runs in nats per token."""
    found: dict[tuple[int, int], list[float]] = {}
    for run in variant.chosen:
        for each in run.positions:
            found.setdefault((each.start, each.end), []).append(each.loss)
    return dict(sorted(found.items()))


def losses_by_length(variant: VariantSummary) -> dict[int, list[float]]:
    """Return, by context length, the losses of the chosen runs in the study's unit."""
    found: dict[int, list[float]] = {}
    for run in variant.chosen:
        for each in run.lengths:
            found.setdefault(each.length, []).append(each.bits_per_byte)
    return dict(sorted(found.items()))


def accuracies_by(variant: VariantSummary, quantity: str) -> dict[float, list[float]]:
    """Return, by a quantity such as `pairs`, the share of right answers in each of the chosen runs."""
    found: dict[float, list[float]] = {}
    for run in variant.chosen:
        entries = run.accuracy if quantity == "distance" else run.answers
        for value in sorted({getattr(each, quantity) for each in entries} - {None}):
            found.setdefault(value, []).append(_share(entries, quantity, value))
    return dict(sorted(found.items()))


def state_of(variant: VariantSummary) -> int:
    """Return the bytes of a variant's state: as measured, else by the accounting at the longest context."""
    return variant.measured_state or variant.state_bytes[-1]


def fill_positions(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the loss over the position in the document, with a band over seeds."""
    axes.set_xscale("log", base=2)
    lines = {variant.name: losses_by_position(variant) for variant in summary.variants}
    drawn = {name: {end: losses for (_, end), losses in each.items()} for name, each in lines.items() if each}
    ends = _draw_lines(axes, drawn, summary, theme)
    _tick(axes, sorted({end for each in drawn.values() for end in each}))
    axes.set(xlabel="position in the document (tokens)", ylabel="loss (nats per token)")
    label_ends(axes, ends)


def fill_lengths(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the loss over the context length, with a band over seeds."""
    axes.set_xscale("log", base=2)
    lines = {variant.name: losses_by_length(variant) for variant in summary.variants}
    ends = _draw_lines(axes, {name: each for name, each in lines.items() if each}, summary, theme)
    _tick(axes, sorted({length for each in lines.values() for length in each}))
    axes.set(xlabel="context (tokens)", ylabel=f"validation loss ({summary.unit})")
    label_ends(axes, ends)


def fill_accuracy_by(axes: Axes, summary: StudySummary, theme: Theme, *, quantity: str, label: str) -> None:
    """Plot the accuracy over how hard a task is, with a band over seeds."""
    values = {variant.name: accuracies_by(variant, quantity) for variant in summary.variants}
    if quantity != "depth":
        axes.set_xscale("log", base=2)
    ends = _draw_lines(axes, {name: each for name, each in values.items() if each}, summary, theme)
    if quantity != "depth":
        _tick(axes, sorted({place for each in values.values() for place in each}))
    axes.set(xlabel=label, ylabel="accuracy", ylim=(-0.02, 1.02))
    label_ends(axes, ends)


def fill_accuracy_by_state(axes: Axes, summary: StudySummary, theme: Theme) -> None:
    """Plot the accuracy of every seed over the bytes of the state, and a larger mark at the mean."""
    axes.set_xscale("log", base=2)
    ends = []
    for variant in summary.variants:
        accuracies = list(variant.accuracies.values())
        if not accuracies:
            continue
        color, state = color_of(variant.name, summary, theme), state_of(variant)
        axes.plot([state] * len(accuracies), accuracies, color=color, linestyle="", marker="o", markersize=3, alpha=0.5)
        axes.plot([state], [fmean(accuracies)], color=color, linestyle="", marker="D", markersize=7)
        ends.append((f"{short(variant.name)} {fmean(accuracies):.1%}", fmean(accuracies), color))
    axes.set(xlabel="state of one sequence", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    label_ends(axes, ends)


def _draw_lines(
    axes: Axes, lines: dict[str, dict[int, list[float]]] | dict[str, dict[float, list[float]]], summary: StudySummary,
    theme: Theme,
) -> list[tuple[str, float, str]]:  # fmt: skip
    """Draw a line for each variant, and return what is to stand at its end."""
    ends = []
    for name, values in lines.items():
        color = color_of(name, summary, theme)
        means = [fmean(each) for each in values.values()]
        axes.plot(list(values), means, marker="o", markersize=2.6, **line_of(name, summary, theme))
        if max(map(len, values.values())) > 1:
            low, high = ([chosen(each) for each in values.values()] for chosen in (min, max))
            axes.fill_between(list(values), low, high, color=color, alpha=0.18, linewidth=0)
        ends.append((f"{short(name)} {means[-1]:.3f}", means[-1], color))
    return ends


def _tick(axes: Axes, places: Sequence[float]) -> None:
    shown = places if len(places) <= 9 else places[:: -(-len(places) // 9)]
    axes.xaxis.set_major_locator(FixedLocator(list(shown)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_length(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())


def _share(entries: Sequence[Accuracy], quantity: str, value: float) -> float:
    chosen = [each for each in entries if getattr(each, quantity) == value]
    answers = sum(each.answers for each in chosen)
    return sum(each.accuracy * each.answers for each in chosen) / answers if answers else 0.0
