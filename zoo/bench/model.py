"""`zoo bench model`: training steps of one model with several mixers, over lengths, of about equally many tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console

from zoo.bench.cold_start import measure_cold_start
from zoo.bench.engine import OUT_OF_MEMORY, Benchmark, Row, attempt, describe_place, print_lines, release_memory
from zoo.bench.models import QUADRATIC, TrainingStep, load_documents, make_batches, recipe_with, softmax_backend
from zoo.bench.profile import print_profile, profile_step
from zoo.bench.timing import Ceilings, Timer, Timing, wall_seconds
from zoo.data import Corpus
from zoo.recipe import Recipe
from zoo.report.numbers import known, milliseconds, short_length
from zoo.training.memory import advice
from zoo.training.optimizer import autocast_dtype

__all__ = ["ModelBenchmark", "print_cold_starts"]

_MARKS = {"none": "", "selective": " *", "full": " **"}
_NOTES = {"selective": "* keeps inputs of layers and outputs of mixing ops", "full": "** keeps inputs of layers"}


@dataclass(frozen=True)
class ModelBenchmark(Benchmark):
    """What is measured, how, and beside what ceilings. Mixers are those of recipes, and softmax by backend."""

    recipe: Recipe
    mixers: tuple[str, ...]
    lengths: tuple[int, ...]
    timer: Timer
    ceilings: Ceilings
    device: torch.device
    step_tokens: int = 65536  # of a step, if the length is not longer
    modes: tuple[bool, ...] = (True,)  # compiled or not
    documents: str = "packed"  # as training sees the recipe's data, or one: no document divides a sequence
    optimize: bool = False
    quadratic_limit: int = 131072  # the longest sequence for softmax attention
    checkpoint_above: int = 131072  # steps of more tokens keep only the outputs of mixing ops
    profile: bool = False

    name_column = "mixer"
    columns = (
        "recipe", "optimize", "mixer", "tokens", "batch_size", "documents", "compiled", "checkpointing",
        "seconds", "fast_seconds", "slow_seconds", "tokens_per_second", "model_flops_share", "first_seconds",
        "peak_bytes", "reserved_bytes", "absent",
    )  # fmt: skip
    shown = (
        ("thousand tokens/s", "tokens_per_second", 1e3), ("% of a matrix product", "model_flops_share", 0.01),
        ("peak GiB", "peak_bytes", 2**30),
    )  # fmt: skip

    def constants(self) -> Mapping[str, Any]:
        return {"recipe": self.recipe.name, "optimize": self.optimize}

    def at(self, mixer: str, tokens: int) -> Recipe:
        """Return the recipe of one measurement: its mixer, length, batch and checkpointing."""
        batch_size = max(1, self.step_tokens // tokens)
        changes = [f"context_length={tokens}", f"batch_size={batch_size}", "accumulate=1"]
        if batch_size * tokens > self.checkpoint_above and self.recipe.training.checkpointing == "none":
            changes.append("checkpointing=selective")
        return recipe_with(self.recipe, mixer).override([f"training.{change}" for change in changes])

    def title(self) -> str:
        recipe, dtype = self.recipe, autocast_dtype(self.recipe.training, self.device)
        precision = "float32" if dtype is None else f"{str(dtype).removeprefix('torch.')} autocast"
        passes = "forward, backward and optimiser" if self.optimize else "forward and backward"
        text = f"packed documents of {recipe.data.source}" if self.documents == "packed" else "undivided random tokens"
        return (
            f"{describe_place(str(self.device))}\n"
            f"{recipe.name}: {recipe.model.layers} layers, width {recipe.model.width}, {precision}; training steps of "
            f"about {self.step_tokens:,} tokens, {passes}; {text}\n"
            f"ceiling in this run: {self.ceilings.dtype} product {self.ceilings.matmul / 1e12:.3g} TFLOP/s"
        )

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        """Yield rows as they are measured, at each length all mixers in turn.

        What has no memory left, or cannot run, is yielded without a time, and the others go on.
        """
        corpus = load_documents(self.recipe) if self.documents == "packed" else None
        for tokens in self.lengths:
            for mixer in self.mixers:
                training = self.at(mixer, tokens).training
                for compiled in self.modes:
                    more = {
                        "batch_size": training.batch_size, "documents": self.documents, "compiled": compiled,
                        "checkpointing": training.checkpointing,
                    }  # fmt: skip
                    if mixer in QUADRATIC and tokens > self.quadratic_limit:
                        yield Row(mixer, tokens, more=more)
                        continue
                    found, reason = attempt(partial(self._measure, mixer, tokens, compiled, corpus), self.device)
                    timing, measured = found or (None, {})
                    absent = f"{OUT_OF_MEMORY} {advice(training)}" if reason == OUT_OF_MEMORY else reason
                    release_memory(self.device)
                    yield Row(mixer, tokens, timing, absent, {**more, **measured})

    def _measure(self, mixer: str, tokens: int, compiled: bool, corpus: Corpus | None) -> tuple[Timing, dict[str, Any]]:
        """Return the time of a step, and the columns that one has to make a step for."""
        gpu, recipe = self.device.type == "cuda", self.at(mixer, tokens)
        with softmax_backend(mixer):
            batches = make_batches(recipe, corpus, self.device)
            step = TrainingStep(recipe, batches, self.device, compiled=compiled, optimize=self.optimize)
            first = wall_seconds(step, self.device)
            if gpu:
                torch.cuda.empty_cache()  # what compiling took
                torch.cuda.reset_peak_memory_stats()
            timing = self.timer(step)
            flops = 3 * step.model.flops(tokens) * recipe.training.batch_size
            return timing, {
                "tokens_per_second": recipe.training.tokens_per_step / timing.median,
                "model_flops_share": flops / timing.median / self.ceilings.matmul,  # the model's, none twice
                "first_seconds": first,  # compilation included
                "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,  # parameters included
                "reserved_bytes": torch.cuda.max_memory_reserved() if gpu else None,
                "documents": "one" if batches[0][2] is None else "packed",
                "profile": profile_step(step, compiled=compiled) if self.profile else None,
            }

    def report(self, rows: Sequence[Row], console: Console) -> None:
        """Print a line for each row, at each length beside the first mixer there, and what follows from them."""
        for row in rows:
            if row["profile"] is not None:
                mode = "compiled" if row["compiled"] else "eager"
                print_profile(row["profile"], f"{row.name}, T = {short_length(row.tokens)}, {mode}", console)
        heads = "mixer,tokens,batch,ms,tokens\n/s,us/\ntoken,x first,% of\nmatmul,peak\nGiB"
        print_lines(heads.split(","), rows, _cells, console)
        for mode in dict.fromkeys(row["checkpointing"] for row in rows):
            if mode in _NOTES:
                console.print(f"{_NOTES[mode]}, and computes the rest again", highlight=False)
        for line in _findings(rows):
            console.print(line, highlight=False, markup=False)


def _cells(row: Row, first: Row) -> list[str]:
    name = f"{row.name}{'' if row['compiled'] else ' eager'}{_MARKS[row['checkpointing']]}"
    place, rate = [name, short_length(row.tokens), str(row["batch_size"])], row["tokens_per_second"]
    if row.seconds is None:
        reason = "-" if not row.absent else "memory" if row.absent.startswith(OUT_OF_MEMORY) else "failed"
        return [*place, reason, *["-"] * 5]
    return [
        *place, milliseconds(row.seconds), f"{rate:,.0f}", f"{1e6 / rate:.3f}",
        known(rate, ".2f", first["tokens_per_second"]), known(row["model_flops_share"], ".1f", 0.01),
        known(row["peak_bytes"], ".1f", 2**30),
    ]  # fmt: skip


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    """Say who is absent and why, what compiling brings, and how the time of a token changes with the length."""
    for row in rows:
        if row.absent:
            name = f"{row.name}{'' if row['compiled'] else ' eager'}{_MARKS[row['checkpointing']]}"
            yield f"{name} at T = {row.tokens:,}: {row.absent}"
    times = {(row.name, row.tokens, row["compiled"]): row.seconds for row in rows if row.seconds is not None}
    for (mixer, tokens, compiled), seconds in times.items():
        eager = times.get((mixer, tokens, False))
        if compiled and eager is not None:
            yield f"{mixer} at T = {tokens:,}: compiled is {eager / seconds:.2f} x eager"
    for mixer in dict.fromkeys(row.name for row in rows):
        timed = [row for row in rows if row.name == mixer and row["compiled"] and row.seconds is not None]
        rates = {row.tokens: row["tokens_per_second"] for row in timed}
        if len(rates) > 1:
            short, long = min(rates), max(rates)
            change = f"{rates[short] / rates[long]:.2f} x that at {short_length(short)}"
            yield f"{mixer}: a token at T = {short_length(long)} takes {change}"


def print_cold_starts(benchmark: ModelBenchmark, console: Console) -> None:
    """Print, for each mixer at the first length, the time from the start of a process to its first training step."""
    tokens = benchmark.lengths[0]
    for mixer in benchmark.mixers:
        recipe = benchmark.at(mixer, tokens)
        imported, built, stepped = measure_cold_start(recipe, mixer, str(benchmark.device), benchmark.documents)
        stages = f"import {imported:.1f}, data and model {built - imported:.1f}, first step {stepped - built:.1f}"
        console.print(f"cold start, {mixer}, T = {tokens:,}: {stepped:.1f} s ({stages})", highlight=False)
