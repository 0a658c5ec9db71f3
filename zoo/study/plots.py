"""The plots of a study, each with the numbers that it shows. Needs matplotlib."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.report.plots import Format, Theme, color_labels, encode, prepare_axes
from zoo.report.tables import csv_text
from zoo.study.fills import fill_loss, fill_rates, fill_state
from zoo.study.fills_of_measures import (
    accuracies_by,
    fill_accuracy_by,
    fill_accuracy_by_state,
    fill_lengths,
    fill_positions,
    losses_by_length,
    losses_by_position,
    state_of,
)
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["PLOTS", "Plot", "numbers_of", "plots_of", "render"]

_Rows = Iterator[Mapping[str, object]]


@dataclass(frozen=True)
class Plot:
    """One figure of a study."""

    name: str
    """Of the file, without its ending."""
    title: str
    note: str
    """What a reader should know who sees it for the first time."""
    fill: Callable[[Axes, StudySummary, Theme], None]
    rows: Callable[[VariantSummary, StudySummary], _Rows]
    """The numbers of a variant that are drawn, by column; each row has all columns."""


def render(plot: Plot, summary: StudySummary, theme: Theme, format: Format) -> bytes:
    """Draw one plot of a study with at least one variant, the same bytes each time.

    A PNG is about 1,120 by 780 pixels; the text of an SVG is drawn, so that it looks the same everywhere.
    """
    return encode(partial(_draw, plot, summary, theme), format)


def numbers_of(plot: Plot, summary: StudySummary) -> str:
    """Write what a plot shows as CSV: a row a point."""
    rows = [{"variant": variant.name, **row} for variant in summary.variants for row in plot.rows(variant, summary)]
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ["variant"]
    return csv_text(columns, rows)


def plots_of(summary: StudySummary) -> tuple[Plot, ...]:
    """Return the plots that a study has."""
    runs = [run for variant in summary.variants for run in variant.chosen]
    tried = max((len(variant.learning_rates) for variant in summary.variants), default=1)
    chosen = [*PLOTS]
    if any(run.positions for run in runs):
        chosen.append(_POSITIONS)
    if any(run.lengths for run in runs):
        chosen.append(_LENGTHS)
    if any(run.accuracy for run in runs):
        chosen = [
            _ACCURACY_BY_STATE,
            *(_accuracy(*each) for each in _DIFFICULTIES if _varies(summary, each[0])),
            *chosen,
        ]
    return (*chosen, _RATES) if tried > 1 else tuple(chosen)


def _varies(summary: StudySummary, quantity: str) -> bool:
    return any(len(accuracies_by(variant, quantity)) > 1 for variant in summary.variants)


def _draw(plot: Plot, summary: StudySummary, theme: Theme) -> Figure:
    figure = Figure(figsize=(5.6, 3.9), layout="constrained", dpi=200, facecolor=theme.background)
    axes = figure.add_subplot(facecolor=theme.background)
    prepare_axes(axes, plot.title, theme)
    plot.fill(axes, summary, theme)
    color_labels(axes, theme)
    return figure


def _curve_rows(variant: VariantSummary, summary: StudySummary) -> _Rows:
    curve, (low, high) = variant.validation, variant.validation_range
    for place, tokens in enumerate(curve.tokens):
        yield {
            "tokens": tokens,
            "flops": curve.flops[place],
            "seconds": curve.seconds[place],
            summary.unit.replace(" ", "_"): curve.bits[place],
            "lowest": low.bits[place],
            "highest": high.bits[place],
        }


def _state_rows(variant: VariantSummary, summary: StudySummary) -> _Rows:
    for context, byte_count in zip(summary.state_contexts, variant.state_bytes, strict=True):
        yield {"context": context, "state_bytes": byte_count}


def _rate_rows(variant: VariantSummary, summary: StudySummary) -> _Rows:
    for run in variant.runs:
        yield {
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            summary.unit.replace(" ", "_"): run.final_bits,
            "chosen": run.learning_rate == variant.learning_rate,
        }


def _position_rows(variant: VariantSummary, _summary: StudySummary) -> _Rows:
    for (start, end), losses in losses_by_position(variant).items():
        yield {"start": start, "end": end, "nats_per_token": fmean(losses), "lowest": min(losses),
               "highest": max(losses)}  # fmt: skip


def _length_rows(variant: VariantSummary, summary: StudySummary) -> _Rows:
    for length, losses in losses_by_length(variant).items():
        unit = summary.unit.replace(" ", "_")
        yield {"length": length, unit: fmean(losses), "lowest": min(losses), "highest": max(losses)}


def _accuracy_rows(variant: VariantSummary, _summary: StudySummary, *, quantity: str) -> _Rows:
    for value, shares in accuracies_by(variant, quantity).items():
        yield {quantity: value, "accuracy": fmean(shares), "lowest": min(shares), "highest": max(shares)}


def _accuracy_by_state_rows(variant: VariantSummary, _summary: StudySummary) -> _Rows:
    for seed, accuracy in variant.accuracies.items():
        yield {"state_bytes": state_of(variant), "seed": seed, "accuracy": accuracy}


PLOTS = (
    Plot(
        "loss-by-tokens",
        "Loss by tokens",
        "What each mixer learns from the same text. Faint: training loss.",
        partial(fill_loss, quantity="tokens", label="training tokens"),
        _curve_rows,
    ),
    Plot(
        "loss-by-flops",
        "Loss by computation",
        "What each mixer learns from the same number of operations.",
        partial(fill_loss, quantity="flops", label="training FLOPs (forward and backward)"),
        _curve_rows,
    ),
    Plot(
        "loss-by-seconds",
        "Loss by time",
        "What each mixer learns in the same time on this machine, compilation and evaluation left out.",
        partial(fill_loss, quantity="seconds", label="training time (s)"),
        _curve_rows,
    ),
    Plot(
        "state-by-context",
        "State by context",
        "Memory that one sequence needs while decoding. Equal states lie on one line, dashed in turn.",
        fill_state,
        _state_rows,
    ),
)

_RATES = Plot(
    "loss-by-rate",
    "Loss by learning rate",
    "What each mixer comes to at each rate; the best one is marked. A best rate at the edge may not be the best.",
    fill_rates,
    _rate_rows,
)

_POSITIONS = Plot(
    "loss-by-position",
    "Loss by position",
    "What each mixer makes of what came before in the document: the further down a line goes, the more.",
    fill_positions,
    _position_rows,
)

_LENGTHS = Plot(
    "loss-by-length",
    "Loss by context length",
    "What each mixer makes of shorter and longer contexts than it was trained at.",
    fill_lengths,
    _length_rows,
)

_ACCURACY_BY_STATE = Plot(
    "accuracy-by-state",
    "Accuracy by state",
    "The share of right answers, over the memory that one sequence needs. Small: each seed.",
    fill_accuracy_by_state,
    _accuracy_by_state_rows,
)

_DIFFICULTIES = (
    ("length", "sequence length (tokens)"),
    ("pairs", "pairs to remember"),
    ("distance", "tokens from what was to be remembered"),
    ("depth", "depth in the sequence"),
)


def _accuracy(quantity: str, label: str) -> Plot:
    return Plot(
        f"accuracy-by-{quantity}",
        f"Accuracy by {quantity}",
        "The share of right answers, the harder the further to the right.",
        partial(fill_accuracy_by, quantity=quantity, label=label),
        partial(_accuracy_rows, quantity=quantity),
    )
