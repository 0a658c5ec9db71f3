"""RWKV-7's time mixing, forward and backward, by each of its implementations and by fla-core called directly."""

import csv
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from zoo.bench.contestants import Refusal
from zoo.bench.entrant import BOTH, FORWARD, OUT_OF_MEMORY, peak_bytes, reason_of
from zoo.bench.timing import Run, Timer
from zoo.errors import InputError, nearest
from zoo.kernels.rwkv7 import fla, rwkv7

__all__ = ["ENTRANTS", "Rwkv7Case", "Rwkv7Measurement", "make_inputs", "measure_rwkv7", "write_rwkv7_csv"]

FLOOR = -0.607  # of RWKV-7's log decays

Mix = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Rwkv7Case:
    """What is measured: batch, heads of so many channels, dtype and device."""

    batch_size: int = 1
    heads: int = 12
    head_width: int = 64
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"


@dataclass(frozen=True)
class Rwkv7Measurement:
    """One entrant, length and pass; without seconds it could not run, and `absent` says why."""

    entrant: str
    tokens: int
    passes: str  # FORWARD or BOTH
    seconds: float | None = None  # the median
    fast_seconds: float | None = None  # quantile at 20%
    slow_seconds: float | None = None  # quantile at 80%
    peak_bytes: int | None = None  # most memory at a time beyond the inputs, on a GPU
    absent: str = ""


def make_inputs(case: Rwkv7Case, tokens: int) -> list[Tensor]:
    """Random r, log_w (float32), k, v, kappa and a `[B, T, H, N]`, as RWKV-7 makes them, requiring gradients."""
    generator = torch.Generator(case.device).manual_seed(tokens)

    def normal() -> Tensor:
        shape = (case.batch_size, tokens, case.heads, case.head_width)
        return torch.randn(shape, generator=generator, device=case.device)

    r, k, v, kappa, a = (normal() for _ in range(5))
    r, k, v, kappa, a = (x.to(case.dtype) for x in (r, k, v, F.normalize(kappa, dim=-1), a.sigmoid()))
    return [x.requires_grad_() for x in (r, -0.6065 * normal().sigmoid(), k, v, kappa, a)]


def _ours(case: Rwkv7Case) -> Mix:
    """Our op by fla-core's kernels, compiled."""
    return _compiled(case, "fla")


def _chunked(case: Rwkv7Case) -> Mix:
    """Our op in PyTorch, compiled."""
    return _compiled(case, "chunked")


def _compiled(case: Rwkv7Case, impl: str) -> Mix:
    def mix(inputs: list[Tensor]) -> Tensor:
        return rwkv7(*inputs, log_w_floor=FLOOR, impl=impl).o  # type: ignore[arg-type]

    misfit = fla.misfit(make_inputs(case, 1)[0], FLOOR, None)
    if impl == "fla" and misfit:
        raise Refusal(misfit)
    return torch.compile(mix, fullgraph=True)


def _direct(case: Rwkv7Case) -> Mix:
    """fla-core's function under its own autograd, given what our op is given."""
    call = _fla_core(case)

    def mix(inputs: list[Tensor]) -> Tensor:
        r, log_w, k, v, kappa, a = inputs
        return call([r, log_w, k, v, -kappa, kappa * a])

    return mix


def _fla_core(case: Rwkv7Case) -> Mix:
    """fla-core's function on its own arguments: the last two inputs stand for -kappa and kappa * a."""
    misfit = fla.misfit(make_inputs(case, 1)[0], FLOOR, None)
    if misfit:
        raise Refusal(misfit)
    from fla.ops.rwkv7 import chunk_rwkv7

    return lambda inputs: chunk_rwkv7(*inputs, lower_bound=FLOOR)[0]


ENTRANTS: dict[str, Callable[[Rwkv7Case], Mix]] = {
    "ours": _ours,
    "direct": _direct,
    "arguments-ready": _fla_core,
    "chunked": _chunked,
}


def measure_rwkv7(
    case: Rwkv7Case, lengths: Sequence[int], timer: Timer, names: Sequence[str] | None = None
) -> Iterator[Rwkv7Measurement]:
    """Yield measurements as they are made, at each length all entrants in turn, forward and forward + backward.

    Args:
        case: sizes, dtype and device.
        lengths: numbers of tokens.
        timer: how.
        names: who takes part, of `ENTRANTS`; None: all. What cannot run is yielded without seconds.

    Raises:
        InputError: there is no entrant of that name.
    """
    for name in names or ():
        if name not in ENTRANTS:
            raise InputError(f"entrants: expected some of {', '.join(ENTRANTS)}, was {name!r}{nearest(name, ENTRANTS)}")
    built: dict[str, Mix | str] = {}
    for name in names or ENTRANTS:
        try:
            built[name] = ENTRANTS[name](case)
        except Refusal as refusal:
            built[name] = str(refusal)
    for tokens in lengths:
        for name, mix in built.items():
            for passes in (FORWARD, BOTH):
                if isinstance(mix, str):
                    yield Rwkv7Measurement(name, tokens, passes, absent=mix)
                else:
                    yield _measure(name, mix, case, tokens, passes, timer)


def _measure(name: str, mix: Mix, case: Rwkv7Case, tokens: int, passes: str, timer: Timer) -> Rwkv7Measurement:
    inputs = make_inputs(case, tokens)
    if name == "arguments-ready":
        with torch.no_grad():
            inputs[5].mul_(inputs[4])
            inputs[4].neg_()
    for x in inputs:
        torch._dynamo.maybe_mark_dynamic(x, 1)  # one compilation for all lengths
    do = torch.randn_like(inputs[3])

    def both() -> object:
        return torch.autograd.grad(mix(inputs), inputs, do)

    call: Run = both if passes == BOTH else torch.no_grad()(lambda: mix(inputs))
    try:
        timing, peak = timer(call), peak_bytes(call, case.device)
    except Exception as error:
        reason = reason_of(error, [])
    else:
        return Rwkv7Measurement(name, tokens, passes, *timing, peak_bytes=peak)
    # Only here, without the error, are its frames gone, which hold tensors.
    gc.collect()
    if reason == OUT_OF_MEMORY and case.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return Rwkv7Measurement(name, tokens, passes, absent=reason)


def write_rwkv7_csv(measurements: Sequence[Rwkv7Measurement], path: Path) -> None:
    """Write one line a measurement, with the field names of `Rwkv7Measurement` as header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Rwkv7Measurement)])
        writer.writeheader()
        writer.writerows(asdict(measurement) for measurement in measurements)
