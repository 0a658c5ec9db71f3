"""Measure decoding of one model with several mixers: a token a row, far into a sequence."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from zoo.bench.entrant import reason_of
from zoo.bench.model import recipe_with, release_memory
from zoo.bench.timing import Ceilings, Timer
from zoo.blocks.cache import KeyValueState
from zoo.builder import build
from zoo.generation import CompiledDecoder, Decoding, compile_decoder
from zoo.models import Decoder, DecoderState
from zoo.recipe import Recipe
from zoo.states import state_bytes

__all__ = ["DecodeBenchmark", "DecodeMeasurement", "bytes_moved", "made_up_state", "measure_decode"]

_STEPS = 32  # in one timed run
_BEFORE = 4  # steps until the loop is recorded
_SHORT = 64  # tokens that made-up states have really seen


@dataclass(frozen=True)
class DecodeBenchmark:
    """What is measured: a step at each position, that is after so many tokens."""

    recipe: Recipe
    mixers: tuple[str, ...]
    positions: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype  # of weights, and of cached keys and values
    batch_size: int = 16
    prefill: int | None = None  # tokens that are read at a time to get there; None: states are made up
    runs: int = 12  # of so many a timer makes at most, for which there has to be room


@dataclass(frozen=True)
class DecodeMeasurement:
    """One mixer and position; without seconds it was not run, and `absent` says why."""

    mixer: str
    position: int
    batch_size: int
    seconds: float | None = None  # of a step, which gives a token for each row: the median
    fast_seconds: float | None = None  # quantile at 20%
    slow_seconds: float | None = None  # quantile at 80%
    tokens_per_second: float | None = None
    copy_share: float | None = (
        None  # weights and state read once, what changes of the state written once, beside a copy
    )
    state_bytes: int | None = None  # of all rows
    peak_bytes: int | None = None  # allocated at most, on a GPU
    recorded: bool | None = None  # whether steps are replayed from a CUDA graph
    absent: str = ""


def measure_decode(benchmark: DecodeBenchmark, timer: Timer, ceilings: Ceilings) -> Iterator[DecodeMeasurement]:
    """Yield measurements as they are made, at each position all mixers in turn.

    Args:
        benchmark: what to measure.
        timer: how, with at most `benchmark.runs` runs.
        ceilings: what shares are of.
    """
    models = {}
    for mixer in benchmark.mixers:
        torch.manual_seed(0)
        recipe = recipe_with(benchmark.recipe, mixer)
        models[mixer] = compile_decoder(build(recipe, device=benchmark.device, dtype=benchmark.dtype).eval())
    for position in benchmark.positions:
        for mixer, model in models.items():
            try:
                yield _measure(benchmark, mixer, model, position, timer, ceilings)
            except Exception as error:
                yield DecodeMeasurement(mixer, position, benchmark.batch_size, absent=reason_of(error, []))
            model.release()
            if benchmark.device.type == "cuda":
                torch.cuda.empty_cache()
    models.clear()
    release_memory(benchmark.device)


def _measure(
    benchmark: DecodeBenchmark, mixer: str, model: CompiledDecoder, position: int, timer: Timer, ceilings: Ceilings
) -> DecodeMeasurement:
    gpu, rows = benchmark.device.type == "cuda", benchmark.batch_size
    tokens = torch.randint(0, model.config.vocab_size, (rows,), device=benchmark.device)
    room = _BEFORE + benchmark.runs * _STEPS
    if benchmark.prefill is None:
        state = made_up_state(model.model, rows, position, room)
    else:
        state = _read(model, rows, position, room, benchmark.prefill)
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

    timing = timer(run)
    seconds = timing.median / _STEPS
    return DecodeMeasurement(
        mixer=mixer,
        position=position,
        batch_size=rows,
        seconds=seconds,
        fast_seconds=timing.fast / _STEPS,
        slow_seconds=timing.slow / _STEPS,
        tokens_per_second=rows / seconds,
        copy_share=moved / seconds / ceilings.copy,
        state_bytes=state_bytes(state),
        peak_bytes=torch.cuda.max_memory_allocated() if gpu else None,
        recorded=decoding.recorded,
    )


@torch.no_grad()
def made_up_state(model: Decoder, batch_size: int, position: int, room: int) -> DecoderState:
    """Return a state as if after `position` tokens, with room for `room` more.

    Sums over the past are those of a short prompt, caches are full of random numbers: a step costs what it would cost.
    """
    device = model.token_embedding.weight.device
    read = min(_SHORT, position)
    prompts = torch.randint(0, model.config.vocab_size, (batch_size, read), device=device)
    lengths = torch.full((batch_size,), read, device=device)
    _, short = model.prefill(prompts, model.init_state(batch_size, max_len=read), lengths)
    state = model.init_state(batch_size, max_len=position + room)
    for target, source in zip(_pytree.tree_leaves(state), _pytree.tree_leaves(short), strict=True):
        if not target.is_floating_point():
            target.copy_(torch.where(source == read, position, source))  # positions; documents start where they did
        elif target.shape == source.shape:
            target.copy_(source)
        else:
            target.normal_()
    return state


@torch.no_grad()
def _read(model: CompiledDecoder, batch_size: int, position: int, room: int, chunk: int) -> DecoderState:
    """Return the state after `position` random tokens, read some at a time."""
    state = model.init_state(batch_size, max_len=position + room)
    for start in range(0, position, chunk):
        size = min(chunk, position - start)
        tokens = torch.randint(0, model.config.vocab_size, (batch_size, size), device=state.position.device)
        _, state = model.prefill(tokens, state, torch.full((batch_size,), size, device=tokens.device))
    return state


def bytes_moved(model: Decoder, state: DecoderState, position: int) -> int:
    """Return what a step has to move: weights and state read once, what it changes of the state written once."""
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
    if isinstance(state, Tensor):
        return 2 * state.nbytes
    return 0 if state is None else sum(_state_moved(part, position) for part in state)
