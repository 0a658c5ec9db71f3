"""What a study found, as plain data: one object that the table, the plots and the page are made from."""

import json
from typing import Self

from pydantic import Field

from zoo.config import Config
from zoo.errors import ConfigError
from zoo.report.numbers import counted
from zoo.report.tables import csv_text
from zoo.study.results import Divergence, EarlyStop, VariantSummary
from zoo.study.statistics import Difference, compare

__all__ = ["CorpusSummary", "StudySummary"]


class CorpusSummary(Config):
    """The text that every variant was trained on."""

    source: str
    tokenizer: str
    documents: int | None
    """None where documents are not marked."""
    train_bytes: int
    """Bytes of text, or tokens but for separators where a token's bytes are not known."""
    validation_bytes: int
    train_tokens: int
    validation_tokens: int
    hash: str
    """sha256, as hexadecimal."""


class Option(Config):
    """A setting, besides the mixer's name, that is not the same in all variants that have it."""

    key: str
    """With dots, such as `mixer.query_key_norm`."""
    values: dict[str, str]
    """By variant, as JSON; of those alone that have it."""


class StudySummary(Config):
    """A study on one task so far: its setting, its baseline and variants with finished runs, in the study's order."""

    name: str
    description: str
    recipe: str
    study_yaml: str
    """The study itself, as written to `study.yaml`."""
    command: str
    """What to type to run it again."""
    date: str
    """When this was written, as an ISO 8601 time in UTC."""
    unit: str
    """Of every loss: "bits per byte", or "bits per token" where the bytes behind a token are not known."""
    task: str = "text"
    label: str = ""
    """What tells it from the study's other parts, in words."""
    folder: str = ""
    """Where its report lies, from the study's on; empty for a study of one part."""
    match: str = "parameters"
    """What all variants have as much of as the first."""
    budget: str = ""
    """What each run may spend, in words; empty: its steps."""
    budget_kind: str = "tokens"
    """`tokens`, `flops` or `seconds`, of which every run has the same."""
    steps: int
    """Of the first variant."""
    context_length: int
    batch_tokens: int
    """Tokens in one optimiser step."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Of the runs of each variant at each learning rate."""
    corpus: CorpusSummary | None
    """None of a task without a text."""
    bigram_bits: float | None
    """Loss of a bigram model on the same validation tokens; None without a text."""
    state_contexts: tuple[int, ...] = Field(min_length=1)
    """Context lengths, in tokens, at which the size of the state is given."""
    planned: tuple[str, ...]
    """The names of all variants, finished or not."""
    options: tuple[Option, ...] = ()
    """What differs between them besides the mixer."""
    variants: tuple[VariantSummary, ...]
    """Those with a finished run that counts."""
    divergences: tuple[Divergence, ...] = ()
    """The runs that diverged."""
    stopped: tuple[EarlyStop, ...] = ()
    """The runs that were stopped early, because their learning rate was hopeless."""
    waiting: dict[str, int] = {}  # noqa: RUF012 (pydantic copies it)
    """By variant, the runs that have not ended."""

    @property
    def title(self) -> str:
        """The study's name, and what tells this part from its others."""
        label = self.label or ("" if self.task == "text" else self.task)
        return f"{self.name}: {label}" if label else self.name

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The names of the variants that are planned and not finished."""
        ended = {variant.name for variant in self.variants} | {each.variant for each in self.divergences}
        return tuple(name for name in self.planned if name not in ended or self.waiting.get(name))

    def with_waiting(self, name: str) -> str:
        """Return an unfinished variant's name, with how many of its runs have not ended where others have."""
        left = self.waiting.get(name)
        return f"{name} ({counted(left, 'run')} left)" if left and name in {v.name for v in self.variants} else name

    @property
    def diverged(self) -> tuple[str, ...]:
        """The names of the variants that diverged at every rate."""
        others = {variant.name for variant in self.variants} | set(self.unfinished)
        return tuple(dict.fromkeys(each.variant for each in self.divergences if each.variant not in others))

    @property
    def differences(self) -> list[Difference]:
        """Each pair of finished variants over their seeds; none for one seed."""
        return compare({variant.name: variant.losses for variant in self.variants})

    def to_json(self) -> str:
        """Write everything, such that `from_json` gives an equal summary."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "summary") -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: `text` is something else; the line starts with `source`.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: not JSON: {error}") from None
        return cls.from_mapping(values, source)

    def to_csv(self) -> str:
        """Write one row of plain numbers for each variant and a last one for the bigram model; no curves."""
        context = self.state_contexts[-1]
        state = f"state_bytes_at_{context}"
        rows = [
            {
                "variant": variant.name,
                **{name: getattr(variant, name) for name in _CSV_FIELDS},
                "overrides": " ".join(variant.overrides),
                "seeds": len(variant.chosen),
                state: variant.state_bytes[-1],
            }
            for variant in self.variants
        ]
        if self.bigram_bits is not None:
            rows.append({"variant": "bigram", "final_bits": self.bigram_bits, "best_bits": self.bigram_bits})
        return csv_text(["variant", *_CSV_FIELDS, "overrides", "seeds", state], rows)

    def runs_to_csv(self) -> str:
        """Write one row of plain numbers for each run."""
        rows = [
            {
                "variant": variant.name,
                **{name: getattr(run, name) for name in _RUN_FIELDS},
                **{name: getattr(run.machine, name) for name in _MACHINE_FIELDS},
            }
            for variant in self.variants
            for run in variant.runs
        ]
        return csv_text(["variant", *_RUN_FIELDS, *_MACHINE_FIELDS], rows)


_CSV_FIELDS = (
    "mixer", "parameters", "feed_forward_width", "forward_flops_per_token", "training_flops_per_token", "final_bits",
    "interval", "best_bits", "learning_rate", "tokens", "seconds", "tokens_per_second", "compile_seconds",
    "graph_breaks", "recompiles", "measured_state", "peak_memory",
)  # fmt: skip
_RUN_FIELDS = (
    "learning_rate", "seed", "final_bits", "choosing_bits", "reported_bits", "best_bits", "seconds",
    "tokens_per_second", "compile_seconds", "graph_breaks", "recompiles", "overall_accuracy", "state_bytes",
    "peak_memory_bytes",
)  # fmt: skip
_MACHINE_FIELDS = ("device", "threads", "torch", "python", "zoo")
