"""What a study found, as plain data: one object that the table, the plots and the page are made from."""

import json
from typing import Self

from pydantic import Field, model_validator

from zoo.config import Config
from zoo.errors import ConfigError
from zoo.report.tables import csv_text

__all__ = ["CorpusSummary", "Curve", "Machine", "StudySummary", "VariantSummary"]


class Curve(Config):
    """A loss during training: entry `i` of every tuple belongs to the same moment."""

    tokens: tuple[int, ...]
    """Tokens trained on so far."""
    flops: tuple[float, ...]
    """Floating-point operations spent on training so far, forward and backward; a multiply-add is two."""
    seconds: tuple[float, ...]
    """Seconds of training so far, without compilation and evaluation."""
    bits: tuple[float, ...]
    """The loss, in the unit that `StudySummary.unit` names."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = [len(self.tokens), len(self.flops), len(self.seconds), len(self.bits)]
        if len(set(lengths)) > 1:
            raise ValueError(f"tokens, flops, seconds and bits must be equally long, got {lengths}")
        return self


class Machine(Config):
    """What a variant ran on, without which its seconds mean little."""

    zoo: str
    torch: str
    python: str
    device: str
    """The name of the processor or GPU."""
    threads: int
    """CPU threads that torch computes with."""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"mixer-zoo {self.zoo}, torch {self.torch}, Python {self.python}, {self.device}, {threads}"


class VariantSummary(Config):
    """One trained model of a study."""

    name: str
    mixer: str
    overrides: tuple[str, ...]
    """What sets the variant apart from the study's recipe."""
    parameters: int
    feed_forward_width: int
    """After the adjustment that matches the parameters to the first variant's."""
    forward_flops_per_token: float
    training_flops_per_token: float
    state_bytes: tuple[int, ...]
    """Bytes of one sequence's state while decoding, one entry for each of `StudySummary.state_contexts`."""
    final_bits: float
    """Validation loss after the last step."""
    best_bits: float
    """The lowest validation loss of all evaluations."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Seconds of training, without compilation and evaluation."""
    tokens_per_second: float
    compile_seconds: float
    graph_breaks: int
    recompiles: int
    validation: Curve
    training: Curve
    machine: Machine


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


class StudySummary(Config):
    """A study so far: its setting, its baseline and the variants that are finished, in the study's order."""

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
    steps: int
    context_length: int
    batch_tokens: int
    """Tokens in one optimiser step."""
    seed: int
    corpus: CorpusSummary
    bigram_bits: float
    """Loss of a bigram model on the same validation tokens."""
    state_contexts: tuple[int, ...] = Field(min_length=1)
    """Context lengths, in tokens, at which the size of the state is given."""
    planned: tuple[str, ...]
    """The names of all variants, finished or not."""
    variants: tuple[VariantSummary, ...]

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The names of the variants that are planned and not finished."""
        finished = {variant.name for variant in self.variants}
        return tuple(name for name in self.planned if name not in finished)

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
        fields = ["variant", *(name for name in VariantSummary.model_fields if name in _CSV_FIELDS)]
        rows = [
            variant.model_dump(include=_CSV_FIELDS)
            | {"variant": variant.name, f"state_bytes_at_{context}": variant.state_bytes[-1]}
            for variant in self.variants
        ]
        rows.append({"variant": "bigram", "final_bits": self.bigram_bits, "best_bits": self.bigram_bits})
        return csv_text([*fields, f"state_bytes_at_{context}"], rows)


_CSV_FIELDS = set(VariantSummary.model_fields) - {
    "name",
    "overrides",
    "state_bytes",
    "validation",
    "training",
    "machine",
}
