"""The columns of a study's table, once for terminal, page and files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from zoo.report.numbers import count, difference, duration, size, with_interval
from zoo.study.results import VariantSummary
from zoo.study.summary import StudySummary

__all__ = ["Column", "columns", "short_columns"]


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
    """`words`, `loss` or `minor`, where the page sets a column differently."""
    number: Callable[[VariantSummary], float] | None = None
    """What rows are sorted by where there is no cost."""
    unclear: frozenset[frozenset[str]] = frozenset()
    """Pairs of variants that chance may have set apart."""

    @property
    def baseline(self) -> str:
        """The bigram model's number, empty where it has none."""
        return "" if self.bigram is None else f"{self.bigram:.3f}"

    def sorted_by(self, variant: VariantSummary) -> float | None:
        """Return the number that rows are sorted by; None for words."""
        chosen = self.number or self.cost
        return None if chosen is None else chosen(variant)

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
        *_accuracy_columns(summary),
        *_result_columns(summary),
        *_setting_columns(summary),
        Column(
            "parameters",
            "trainable numbers of the whole model, and how far they are from the first variant's",
            lambda variant: _parameters(summary, variant),
            number=lambda variant: variant.parameters,
        ),
        Column(
            f"state at {context:,}",
            f"memory that one sequence needs while decoding, at a context of {context:,} tokens",
            lambda variant: size(variant.state_bytes[-1]),
            lambda variant: variant.state_bytes[-1],
        ),
        *_measured_columns(summary),
        Column(
            "forward FLOPs/token",
            f"of the whole model at a context of {summary.context_length:,} tokens; a multiply-add is two",
            lambda variant: count(variant.forward_flops_per_token),
            lambda variant: variant.forward_flops_per_token,
            kind="minor",
        ),
        Column(
            "training FLOPs/token",
            "forward and backward",
            lambda variant: count(variant.training_flops_per_token),
            lambda variant: variant.training_flops_per_token,
        ),
        Column("tokens", "trained on", lambda variant: count(variant.tokens), number=lambda variant: variant.tokens),
        *_time_columns(),
    ]


def _accuracy_columns(summary: StudySummary) -> list[Column]:
    if not any(variant.accuracies for variant in summary.variants):
        return []

    def accuracy(variant: VariantSummary) -> float:
        return fmean(variant.accuracies.values()) if variant.accuracies else 0.0

    return [Column("accuracy", "the share of all answers that are right, on average over seeds",
                   lambda variant: f"{accuracy(variant):.1%}", lambda variant: -accuracy(variant))]  # fmt: skip


def _measured_columns(summary: StudySummary) -> list[Column]:
    """What runs measured of memory, where they did."""
    found = []
    if any(variant.measured_state for variant in summary.variants):
        found.append(
            Column(
                "measured state",
                "bytes of the tensors of one sequence's state at the longest length that was evaluated",
                lambda variant: "-" if variant.measured_state is None else size(variant.measured_state),
                lambda variant: variant.measured_state or 0,
            )
        )
    if any(variant.peak_memory for variant in summary.variants):
        found.append(
            Column(
                "peak memory",
                "that training took at most",
                lambda variant: "-" if variant.peak_memory is None else size(variant.peak_memory),
                lambda variant: variant.peak_memory or 0,
            )
        )
    return found


def _time_columns() -> list[Column]:
    return [
        Column(
            "tokens/s",
            "of training, without compilation and evaluation",
            lambda variant: count(variant.tokens_per_second),
            lambda variant: -variant.tokens_per_second,
            number=lambda variant: variant.tokens_per_second,
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
            kind="minor",
            number=lambda variant: variant.compile_seconds,
        ),
        Column(
            "graph breaks",
            "places where the compiled model falls back to Python",
            lambda variant: str(variant.graph_breaks),
            lambda variant: variant.graph_breaks,
            kind="minor",
        ),
        Column(
            "recompiles",
            "compilations beyond the first of each entry point",
            lambda variant: str(variant.recompiles),
            lambda variant: variant.recompiles,
            kind="minor",
        ),
    ]


def short_columns(summary: StudySummary) -> list[Column]:
    """Return what fits a terminal of 80 characters."""
    chosen = {"parameters", "tokens/s", "training time"}
    wide = [column for column in columns(summary) if column.heading in chosen or column.heading.startswith("state at")]
    final, best = _result_columns(summary)
    return [
        *_accuracy_columns(summary),
        final,
        *([best] if len(summary.seeds) == 1 else []),
        *wide,
    ]  # an interval takes the room of the best


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
            kind="minor",
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
            number=lambda variant: variant.learning_rate,
        ),
        Column(
            "seeds",
            "runs at that rate",
            lambda variant: str(len(variant.chosen)),
            number=lambda variant: len(variant.chosen),
        ),
    ]


def _parameters(summary: StudySummary, variant: VariantSummary) -> str:
    first = summary.variants[0]
    if variant.name == first.name:
        return count(variant.parameters)
    return f"{count(variant.parameters)} ({difference(variant.parameters, first.parameters)})"
