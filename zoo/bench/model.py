"""Measure training steps of one model with several mixers, over context lengths at about the same number of tokens."""

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.bench.entrant import OUT_OF_MEMORY, reason_of
from zoo.bench.timing import Ceilings, Timer
from zoo.bench.training_step import TrainingStep
from zoo.builder import configure
from zoo.errors import InputError, nearest
from zoo.mixers import mixers
from zoo.recipe import Recipe
from zoo.training.memory import advice

__all__ = [
    "DEFAULT_MIXERS",
    "QUADRATIC",
    "ModelBenchmark",
    "ModelMeasurement",
    "check_mixers",
    "measure_model",
    "recipe_with",
    "release_memory",
    "softmax_backend",
]

_BACKENDS = {"softmax-cudnn": SDPBackend.CUDNN_ATTENTION, "softmax-flash": SDPBackend.FLASH_ATTENTION}
QUADRATIC = ("softmax", *_BACKENDS)
"""Mixers whose time is quadratic in the length."""
DEFAULT_MIXERS = ("softmax-cudnn", "linear", "gated-power")


@dataclass(frozen=True)
class ModelBenchmark:
    """What is measured. Mixers are those of recipes, and softmax with one of PyTorch's backends by name."""

    recipe: Recipe
    mixers: tuple[str, ...]
    lengths: tuple[int, ...]
    step_tokens: int = 65536  # of a step, if the length is not longer
    modes: tuple[bool, ...] = (True,)  # compiled or not
    optimize: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quadratic_limit: int = 131072  # the longest sequence for softmax attention
    checkpoint_above: int = 131072  # steps of more tokens keep only the outputs of mixing ops

    def at(self, mixer: str, tokens: int) -> Recipe:
        """Return the recipe of one measurement: its mixer, length, batch and checkpointing."""
        batch_size = max(1, self.step_tokens // tokens)
        changes = [f"context_length={tokens}", f"batch_size={batch_size}", "accumulate=1"]
        if batch_size * tokens > self.checkpoint_above and self.recipe.training.checkpointing == "none":
            changes.append("checkpointing=selective")
        return recipe_with(self.recipe, mixer).override([f"training.{change}" for change in changes])


@dataclass(frozen=True)
class ModelMeasurement:
    """One mixer, length and mode; without seconds it was not run, and `absent` says why unless it is too long."""

    mixer: str
    tokens: int
    batch_size: int
    compiled: bool
    checkpointing: str
    seconds: float | None = None  # of a step, the median
    fast_seconds: float | None = None  # quantile at 20%
    slow_seconds: float | None = None  # quantile at 80%
    tokens_per_second: float | None = None
    model_flops_share: float | None = None  # the model's FLOPs, none twice, of what a matrix product reaches
    first_seconds: float | None = None  # the first step, compilation included
    peak_bytes: int | None = None  # allocated at most, parameters included, on a GPU
    reserved_bytes: int | None = None  # taken from the GPU at most
    absent: str = ""


def check_mixers(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of mixers, each once.

    Raises:
        InputError: there is none of that name.
    """
    known = [*_BACKENDS, *mixers]
    for name in names:
        if name not in known:
            raise InputError(f"mixers: expected some of {', '.join(known)}, was {name!r}{nearest(name, known)}")
    return tuple(dict.fromkeys(names))


def softmax_backend(mixer: str) -> AbstractContextManager[Any]:
    """Hold softmax attention to the backend that a mixer's name says."""
    return sdpa_kernel(_BACKENDS[mixer]) if mixer in _BACKENDS else nullcontext()


def recipe_with(recipe: Recipe, mixer: str) -> Recipe:
    """Return a recipe with another mixer; its own keeps the options it has."""
    name = "softmax" if mixer in _BACKENDS else mixer
    return recipe if recipe.mixer.name == name else configure(recipe, mixer=name)


def measure_model(
    benchmark: ModelBenchmark, timer: Timer, ceilings: Ceilings, look: Callable[[str, bool, TrainingStep], None]
) -> Iterator[ModelMeasurement]:
    """Yield measurements as they are made, at each length all mixers in turn.

    What has no memory left, or cannot run, is yielded without seconds, and the others go on.

    Args:
        benchmark: what to measure.
        timer: how.
        ceilings: what shares are of.
        look: is shown each step that could be timed, with its mixer and mode, while it is still in memory.
    """
    for tokens in benchmark.lengths:
        for mixer in benchmark.mixers:
            training = benchmark.at(mixer, tokens).training
            for compiled in benchmark.modes:
                row = ModelMeasurement(mixer, tokens, training.batch_size, compiled, training.checkpointing)
                if mixer not in QUADRATIC or tokens <= benchmark.quadratic_limit:
                    row = replace(row, **_measure(benchmark, mixer, tokens, compiled, timer, ceilings, look))
                    release_memory(benchmark.device)
                yield row


def release_memory(device: torch.device) -> None:
    """Drop compiled graphs and cached memory, so that what comes next starts as if it were alone."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(
    benchmark: ModelBenchmark,
    mixer: str,
    tokens: int,
    compiled: bool,
    timer: Timer,
    ceilings: Ceilings,
    look: Callable[[str, bool, TrainingStep], None],
) -> dict[str, Any]:
    """Return the fields of a `ModelMeasurement` that one has to run a step for."""
    gpu, recipe = benchmark.device.type == "cuda", benchmark.at(mixer, tokens)
    training = recipe.training
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with softmax_backend(mixer):
                step = TrainingStep(recipe, benchmark.device, compiled=compiled, optimize=benchmark.optimize)
                first = _seconds(step, gpu)
                if gpu:
                    torch.cuda.empty_cache()  # what compiling took
                    torch.cuda.reset_peak_memory_stats()
                timing = timer(step)
                peak = torch.cuda.max_memory_allocated() if gpu else None
                reserved = torch.cuda.max_memory_reserved() if gpu else None
                flops = 3 * step.model.flops(tokens) * training.batch_size
                look(mixer, compiled, step)
        except Exception as error:
            reason = reason_of(error, [str(warning.message) for warning in caught])
            return {"absent": f"{OUT_OF_MEMORY} at {advice(training)}" if reason == OUT_OF_MEMORY else reason}
    return {
        "seconds": timing.median,
        "fast_seconds": timing.fast,
        "slow_seconds": timing.slow,
        "tokens_per_second": training.tokens_per_step / timing.median,
        "model_flops_share": flops / timing.median / ceilings.matmul,
        "first_seconds": first,
        "peak_bytes": peak,
        "reserved_bytes": reserved,
    }


def _seconds(step: TrainingStep, gpu: bool) -> float:
    start = time.perf_counter()
    step()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
