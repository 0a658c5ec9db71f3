"""The table of a study: its columns, once for terminal, page and files, and the terminal's table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.report.numbers import count, difference, duration, size, with_interval
from zoo.report.tables import GuardedConsole
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["Column", "columns", "print_summary", "short_columns", "text_rows"]


@dataclass(frozen=True)
class Column:
    """One number of every variant."""

    heading: str
    explanation: str
    text: Callable[[VariantSummary], str]
    cost: Callable[[VariantSummary], float] | None = None
    """What is better when lower; None where nothing is better."""
    bigram: float | None = None
    """The bigram model's number, where it has one."""
    kind: str = ""
    """`words` or `loss`, where the page sets a column differently."""
    unclear: frozenset[frozenset[str]] = frozenset()
    """Pairs of variants that chance may have set apart."""

    @property
    def baseline(self) -> str:
        """The bigram model's number, empty where it has none."""
        return "" if self.bigram is None else f"{self.bigram:.3f}"

    def is_best(self, variant: VariantSummary, variants: Sequence[VariantSummary]) -> bool:
        """Whether nothing among `variants` is better, and something is worse, as far as can be told.

        As far as the written numbers show, and, over several seeds, beyond chance.
        """
        if self.cost is None:
            return False
        best = min(variants, key=self.cost)

        def equals_best(other: VariantSummary) -> bool:
            return self.text(other) == self.text(best) or frozenset((other.name, best.name)) in self.unclear

        return equals_best(variant) and not all(map(equals_best, variants))


def columns(summary: StudySummary) -> list[Column]:
    """Return every column, for the page."""
    context = summary.state_contexts[-1]
    return [
        Column("mixer", "what mixes over time", lambda variant: variant.mixer, kind="words"),
        *_result_columns(summary),
        *_setting_columns(summary),
        Column(
            "parameters",
            "trainable numbers of the whole model, and how far they are from the first variant's",
            lambda variant: _parameters(summary, variant),
        ),
        Column(
            f"state at {context:,}",
            f"memory that one sequence needs while decoding, at a context of {context:,} tokens",
            lambda variant: size(variant.state_bytes[-1]),
            lambda variant: variant.state_bytes[-1],
        ),
        Column(
            "forward FLOPs/token",
            f"of the whole model at a context of {summary.context_length:,} tokens; a multiply-add is two",
            lambda variant: count(variant.forward_flops_per_token),
            lambda variant: variant.forward_flops_per_token,
        ),
        Column(
            "training FLOPs/token",
            "forward and backward",
            lambda variant: count(variant.training_flops_per_token),
            lambda variant: variant.training_flops_per_token,
        ),
        Column("tokens", "trained on", lambda variant: count(variant.tokens)),
        Column(
            "tokens/s",
            "of training, without compilation and evaluation",
            lambda variant: count(variant.tokens_per_second),
            lambda variant: -variant.tokens_per_second,
        ),
        Column(
            "training time",
            "without compilation and evaluation",
            lambda variant: duration(variant.seconds),
            lambda variant: variant.seconds,
        ),
        Column(
            "compile time",
            "of torch.compile, all runs together; the one trained first also waits for the compiler itself to start",
            lambda variant: duration(variant.compile_seconds),
        ),
        Column(
            "graph breaks",
            "places where the compiled model falls back to Python",
            lambda variant: str(variant.graph_breaks),
            lambda variant: variant.graph_breaks,
        ),
        Column(
            "recompiles",
            "compilations beyond the first of each entry point",
            lambda variant: str(variant.recompiles),
            lambda variant: variant.recompiles,
        ),
    ]


def short_columns(summary: StudySummary) -> list[Column]:
    """Return what fits a terminal of 80 characters."""
    chosen = {"parameters", "tokens/s", "training time"}
    wide = [column for column in columns(summary) if column.heading in chosen or column.heading.startswith("state at")]
    final, best = _result_columns(summary)
    return [final, *([best] if len(summary.seeds) == 1 else []), *wide]  # an interval takes the room of the best


def _result_columns(summary: StudySummary) -> list[Column]:
    over_seeds = f"; mean of {len(summary.seeds)} seeds and its 95% interval" if len(summary.seeds) > 1 else ""
    unclear = (frozenset((each.first, each.second)) for each in summary.differences if not each.is_clear)
    return [
        Column(
            f"final {summary.unit}",
            f"validation loss after the last step{over_seeds}",
            lambda variant: with_interval(variant.final_bits, variant.interval),
            lambda variant: variant.final_bits,
            summary.bigram_bits,
            kind="loss",
            unclear=frozenset(unclear),
        ),
        Column(
            "best",
            "lowest validation loss of all evaluations",
            lambda variant: f"{variant.best_bits:.3f}",
            lambda variant: variant.best_bits,
            summary.bigram_bits,
        ),
    ]


def _setting_columns(summary: StudySummary) -> list[Column]:
    tried = max(len(variant.learning_rates) for variant in summary.variants)
    return [
        Column(
            "learning rate",
            "its peak"
            if tried == 1
            else f"of {tried} the one that is best on the half of the validation text that "
            "the final loss is not told of",
            lambda variant: f"{variant.learning_rate:g}",
        ),
        Column("seeds", "runs at that rate", lambda variant: str(len(variant.chosen))),
    ]


def _parameters(summary: StudySummary, variant: VariantSummary) -> str:
    first = summary.variants[0]
    if variant.name == first.name:
        return count(variant.parameters)
    return f"{count(variant.parameters)} ({difference(variant.parameters, first.parameters)})"


def text_rows(summary: StudySummary) -> tuple[list[str], list[list[str]]]:
    """Return headings, and a row for each variant and the bigram model, with every column."""
    chosen = columns(summary)
    rows = [[variant.name, *(column.text(variant) for column in chosen)] for variant in summary.variants]
    baseline = ["bigram model", *(column.baseline for column in chosen)]
    return ["variant", *(column.heading for column in chosen)], [*rows, baseline]


def print_summary(summary: StudySummary, page: Path, console: Console | None = None) -> None:
    """Print the table of a study and where its page is; numbers stay whole from 80 characters' width on."""
    console = console or GuardedConsole()
    table = Table(
        title=escape(summary.name),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    chosen = short_columns(summary)
    for column in chosen:
        # Headings are wrapped here, and what may not stay on one line is the difference in parameters alone.
        heading = "\n".join(wrap(column.heading, width=8, break_long_words=False))
        table.add_column(heading, justify="right", no_wrap=column.heading != "parameters")
    for variant in summary.variants:
        cells = [_cell(column, variant, summary) for column in chosen]
        table.add_row(escape(variant.name), *cells)
    table.add_section()
    table.add_row("bigram model", *(column.baseline for column in chosen), style="dim")
    console.print(table)
    for each in summary.divergences:
        console.print(f"[yellow]{escape(str(each))} diverged: {escape(each.message)}[/yellow]", soft_wrap=True)
    for name in summary.unfinished:
        console.print(f"[yellow]{escape(name)} is not finished[/yellow]")
    console.print(f"Page: {escape(str(page))}", soft_wrap=True)


def _cell(column: Column, variant: VariantSummary, summary: StudySummary) -> str:
    style = "[bold green]" if column.is_best(variant, summary.variants) else ""
    return style + escape(column.text(variant))
