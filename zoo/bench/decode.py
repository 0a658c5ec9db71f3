"""`zoo bench decode`: one model with several mixers, a token a row, far into a sequence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils import _pytree

from zoo.bench.engine import OUT_OF_MEMORY, Benchmark, Row, attempt, describe_place, print_lines, release_memory
from zoo.bench.models import recipe_with
from zoo.bench.timing import Ceilings, Timer, Timing
from zoo.blocks.cache import KeyValueState
from zoo.builder import build
from zoo.generation import CompiledDecoder, Decoding, compile_decoder
from zoo.kernels.power import PowerJournalState, fold_size
from zoo.models import Decoder, DecoderState
from zoo.recipe import Recipe
from zoo.report.numbers import known, milliseconds
from zoo.states import state_bytes

__all__ = ["DecodeBenchmark", "bytes_moved", "made_up_state"]

_STEPS = 32  # in one timed run
_BEFORE = 4  # steps until the loop is recorded
_SHORT = 64  # tokens that made-up states have really seen


@dataclass(frozen=True)
class DecodeBenchmark(Benchmark):
    """What is measured, how, and beside what ceilings: a step at each position, that is after so many tokens."""

    recipe: Recipe
    mixers: tuple[str, ...]
    positions: tuple[int, ...]
    timer: Timer
    ceilings: Ceilings
    device: torch.device
    dtype: torch.dtype  # of weights, and of cached keys and values
    batch_size: int = 16
    prefill: int | None = None  # tokens that are read at a time to get there; None: states are made up
    runs: int = 12  # of so many the timer makes at most, for which there has to be room

    name_column = "mixer"
    tokens_column = "position"
    columns = (
        "recipe", "dtype", "mixer", "position", "batch_size", "seconds", "fast_seconds", "slow_seconds",
        "tokens_per_second", "copy_share", "state_bytes", "peak_bytes", "recorded", "absent",
    )  # fmt: skip
    shown = (
        ("thousand tokens/s", "tokens_per_second", 1e3), ("% of a copy", "copy_share", 0.01),
        ("peak GiB", "peak_bytes", 2**30),
    )  # fmt: skip

    def constants(self) -> Mapping[str, Any]:
        return {"recipe": self.recipe.name, "dtype": str(self.dtype).removeprefix("torch.")}

    def title(self) -> str:
        model = self.recipe.model
        states = "made-up states" if self.prefill is None else f"prompts read {self.prefill:,} tokens at a time"
        return (
            f"{describe_place(str(self.device))}\n"
            f"{self.recipe.name}: {model.layers} layers, width {model.width}, {self.constants()['dtype']}; decoding, "
            f"{states}\n"
            f"ceiling in this run: copy {self.ceilings.copy / 1e12:.3g} TB/s"
        )

    def rows(self, say: Callable[[str], None]) -> Iterator[Row]:
        """Yield rows as they are measured, at each position all mixers in turn."""
        models = {}
        for mixer in self.mixers:
            torch.manual_seed(0)
            recipe = recipe_with(self.recipe, mixer)
            models[mixer] = compile_decoder(build(recipe, device=self.device, dtype=self.dtype).eval())
        for position in self.positions:
            for mixer, model in models.items():
                found, absent = attempt(partial(self._measure, model, position), self.device)
                timing, more = found or (None, {})
                yield Row(mixer, position, timing, absent, {"batch_size": self.batch_size, **more})
                model.release()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        models.clear()
        release_memory(self.device)

    def _measure(self, model: CompiledDecoder, position: int) -> tuple[Timing, dict[str, Any]]:
        """Return the time of a step, which gives a token for each row, and what else is seen."""
        gpu, rows = self.device.type == "cuda", self.batch_size
        tokens = torch.randint(0, model.config.vocab_size, (rows,), device=self.device)
        room = _BEFORE + self.runs * _STEPS
        if self.prefill is None:
            state = made_up_state(model.model, rows, position, room)
        else:
            state = _read(model, rows, position, room, self.prefill)
        moved = bytes_moved(model.model, state, position)
        decoding = Decoding.from_state(model, state, tokens)
        for _ in range(_BEFORE):
            decoding.next()
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

        def run() -> None:
            for _ in range(_STEPS):
                decoding.next()

        timing = Timing(*(seconds / _STEPS for seconds in self.timer(run)))
        return timing, {
            "tokens_per_second": rows / timing.median,
            "copy_share": moved / timing.median / self.ceilings.copy,  # `bytes_moved`, beside a copy
            "state_bytes": state_bytes(state),  # of all rows
            "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
            "recorded": decoding.recorded,  # whether steps are replayed from a CUDA graph
        }

    def report(self, rows: Sequence[Row], console: Console) -> None:
        """Print a line for each row, who is absent and why, and what distance costs."""
        heads = "mixer,position,batch,ms a\nstep,tokens\n/s,x first,% of\ncopy,state\nGiB,peak\nGiB"
        print_lines(heads.split(","), rows, _cells, console)
        for row in rows:
            replayed = row["recorded"] or row["peak_bytes"] is None
            note = row.absent or ("" if replayed else "not replayed from a CUDA graph")
            if note:
                console.print(f"{row.name} at {row.tokens:,}: {note}", highlight=False, markup=False)
        for mixer in dict.fromkeys(row.name for row in rows):
            times = {row.tokens: row.seconds for row in rows if row.name == mixer and row.seconds is not None}
            if len(times) > 1:
                near, far = min(times), max(times)
                change = f"{times[far] / times[near]:.2f} x that at {near:,}"
                console.print(f"{mixer}: a step at {far:,} takes {change}", highlight=False)


def _cells(row: Row, first: Row) -> list[str]:
    place = [row.name, f"{row.tokens:,}", str(row["batch_size"])]
    if row.seconds is None:
        return [*place, "memory" if row.absent == OUT_OF_MEMORY else "failed", *["-"] * 5]
    rate = row["tokens_per_second"]
    return [
        *place, milliseconds(row.seconds), f"{rate:,.0f}", known(rate, ".2f", first["tokens_per_second"]),
        known(row["copy_share"], ".1f", 0.01), known(row["state_bytes"], ".3f", 2**30),
        known(row["peak_bytes"], ".2f", 2**30),
    ]  # fmt: skip


@torch.no_grad()
def made_up_state(model: Decoder, batch_size: int, position: int, room: int) -> DecoderState:
    """Return a state as if after `position` tokens, with room for `room` more.

    Sums over the past are those of a short prompt, or random, as what caches are full of: a step costs what it would.
    """
    device = model.token_embedding.weight.device
    read = min(_SHORT, position)
    prompts = torch.randint(0, model.config.vocab_size, (batch_size, read), device=device)
    lengths = torch.full((batch_size,), read, device=device)
    _, short = model.prefill(prompts, model.decoding_state(batch_size, max_len=read), lengths)
    state = model.decoding_state(batch_size, max_len=position + room)
    for target, source in zip(_pytree.tree_leaves(state), _pytree.tree_leaves(short), strict=True):
        if not target.is_floating_point():
            target.copy_(torch.where(source == read, position, source))  # positions; documents start where they did
        elif target.shape == source.shape:
            target.copy_(source)
        else:
            target.normal_()
    for part in _pytree.tree_leaves(state.layers, is_leaf=lambda x: isinstance(x, PowerJournalState)):
        if isinstance(part, PowerJournalState):
            for x in part[:4]:
                x.normal_().abs_()  # so that no denominator vanishes
            part.folded.fill_(0 if position < part.slots - 1 else position)
    return state


@torch.no_grad()
def _read(model: CompiledDecoder, batch_size: int, position: int, room: int, chunk: int) -> DecoderState:
    """Return the state after `position` random tokens, read some at a time."""
    state = model.decoding_state(batch_size, max_len=position + room)
    for start in range(0, position, chunk):
        size = min(chunk, position - start)
        tokens = torch.randint(0, model.config.vocab_size, (batch_size, size), device=state.position.device)
        _, state = model.prefill(tokens, state, torch.full((batch_size,), size, device=tokens.device))
    return state


def bytes_moved(model: Decoder, state: DecoderState, position: int) -> int:
    """Return what a step has to move on average: weights and state read once, what it changes of that written once."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if model.position_embedding is not None:
        weights -= model.position_embedding.weight.nbytes  # of which a row is read
    if model.head is not None:
        weights -= model.token_embedding.weight.nbytes
    return weights + _state_moved(state.layers, position)


def _state_moved(state: Any, position: int) -> int:
    if isinstance(state, KeyValueState):
        token = (state.keys.nbytes + state.values.nbytes) // state.keys.shape[1]
        return token * (min(position, state.keys.shape[1]) + 1)
    if isinstance(state, PowerJournalState):
        token = sum(x.nbytes for x in state[2:5]) // state.slots
        fold, sums = fold_size(state.S.shape[2]), state.S.nbytes + state.z.nbytes
        far = token * (fold // 2 + 1) + sums * (fold + 2) // fold
        return far if position >= state.slots - 1 else token * (position + 1)
    if isinstance(state, Tensor):
        return 2 * state.nbytes
    return 0 if state is None else sum(_state_moved(part, position) for part in state)
