"""What variants come to by budget: final losses of whole runs, each with a schedule that ends at its own budget.

One long run cut short would have been at a high learning rate there, which flatters nobody and not all alike.
Needs matplotlib.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from zoo.report.numbers import count, duration, size, with_interval
from zoo.report.plots import Theme, label_ends
from zoo.report.tables import csv_text, markdown_text
from zoo.study.colors import color_of, line_of
from zoo.study.fills import short
from zoo.study.fills_of_measures import state_of
from zoo.study.plots import Plot
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["Outcome", "budget_csv", "budget_markdown", "budget_plots", "outcomes", "text_rows_by_budget"]

_Quantity = Literal["flops", "seconds", "tokens"]

_QUANTITIES: tuple[tuple[_Quantity, str, str], ...] = (
    ("flops", "computation", "training FLOPs of a run (forward and backward)"),
    ("seconds", "time", "training time of a run (s)"),
    ("tokens", "tokens", "training tokens of a run"),
)
_HEADINGS = (
    "variant", "budget", "loss", "seeds", "rate", "tokens", "FLOPs", "time", "tokens/s", "state", "peak memory"
)  # fmt: skip

_FEWEST_TICKS = 3


@dataclass(frozen=True)
class Outcome:
    """What a variant came to with one budget, on average over the seeds of its best rate."""

    variant: VariantSummary
    budget: str

    @property
    def losses(self) -> tuple[float, ...]:
        """After the last step, of each seed."""
        return tuple(self.variant.losses.values())

    def spent(self, quantity: _Quantity) -> float:
        """Return what a run took: operations, seconds without compilation and evaluation, or tokens."""
        return fmean(getattr(run.validation, quantity)[-1] for run in self.variant.chosen)


def outcomes(summaries: Sequence[StudySummary]) -> list[Outcome]:
    """Return what is finished of one task's parts, variant by variant and budget by budget."""
    return [
        Outcome(variant, summary.budget)
        for name in summaries[0].planned
        for summary in summaries
        for variant in summary.variants
        if variant.name == name
    ]


def budget_plots(summaries: Sequence[StudySummary]) -> tuple[Plot, ...]:
    """Return plots of final losses over operations, seconds and tokens; each is drawn with any of the summaries."""
    return tuple(
        Plot(
            f"loss-by-budget-in-{quantity}",
            f"Final loss by {words}",
            "Each mark is a whole run, whose learning rate ends with it. Lines: means over seeds.",
            partial(_fill, found=outcomes(summaries), quantity=quantity, label=label),
            _no_rows,
        )
        for quantity, words, label in _QUANTITIES
    )


def budget_csv(summaries: Sequence[StudySummary]) -> str:
    """Write the numbers of all runs that count as CSV: a row for each variant, budget and seed."""
    rows = [
        {
            "variant": each.variant.name,
            "budget": each.budget,
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            summaries[0].unit.replace(" ", "_"): each.variant.losses[run.seed],
            **{quantity: getattr(run.validation, quantity)[-1] for quantity, _, _ in _QUANTITIES},
            "tokens_per_second": run.tokens_per_second,
            "state_bytes": run.state_bytes,
            "peak_memory_bytes": run.peak_memory_bytes,
        }
        for each in outcomes(summaries)
        for run in each.variant.chosen
    ]
    return csv_text(list(rows[0]) if rows else ["variant"], rows)


def text_rows_by_budget(summaries: Sequence[StudySummary]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and a row for each variant and budget."""
    return list(_HEADINGS), [_row(each) for each in outcomes(summaries)]


def budget_markdown(summaries: Sequence[StudySummary]) -> str:
    """Write that table in Markdown."""
    return markdown_text(*text_rows_by_budget(summaries), words=2)


def _row(each: Outcome) -> list[str]:
    variant = each.variant
    return [
        variant.name,
        each.budget,
        with_interval(variant.final_bits, variant.interval),
        str(len(variant.chosen)),
        f"{variant.learning_rate:g}",
        count(each.spent("tokens")),
        count(each.spent("flops")),
        duration(each.spent("seconds")),
        f"{variant.tokens_per_second:,.0f}",
        size(state_of(variant)),
        "-" if variant.peak_memory is None else size(variant.peak_memory),
    ]


def _no_rows(_variant: VariantSummary, _summary: StudySummary) -> Iterator[Mapping[str, object]]:
    """Yield nothing: the numbers of all these plots are in one file (`budget_csv`)."""
    return iter(())


def _fill(
    axes: Axes, summary: StudySummary, theme: Theme, *, found: Sequence[Outcome], quantity: _Quantity, label: str
) -> None:
    """Plot the final losses of each variant over what its runs took, of every seed, and a line through the means."""
    axes.set_xscale("log")
    ends = []
    for name in dict.fromkeys(each.variant.name for each in found):
        own = [each for each in found if each.variant.name == name]
        places, means = [each.spent(quantity) for each in own], [fmean(each.losses) for each in own]
        color = color_of(name, summary, theme)
        axes.plot(places, means, marker="o", markersize=3.5, **line_of(name, summary, theme))
        for place, each in zip(places, own, strict=True):
            if len(each.losses) > 1:
                spread = [place] * len(each.losses)
                axes.plot(spread, each.losses, color=color, linestyle="", marker="o", markersize=3, alpha=0.5)
        ends.append((f"{short(name)} {means[-1]:.3f}", means[-1], color))
    axes.set(xlabel=label, ylabel=f"final validation loss ({summary.unit})")
    _tick(axes)
    label_ends(axes, ends)


def _tick(axes: Axes) -> None:
    """Mark round numbers, the roundest of which there are three at least: few budgets seldom hold a power of ten."""
    low, high = axes.get_xlim()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        marks = [step * 10.0**power for power in range(-3, 25) for step in steps]
        places = [place for place in marks if low <= place <= high]
        if len(places) >= _FEWEST_TICKS:
            break
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
