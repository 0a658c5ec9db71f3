"""Time and peak memory of power attention beside softmax attention, forward and backward, over sequence lengths."""

import csv
import math
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import InputError
from zoo.kernels.power import power_attention

__all__ = [
    "Attend",
    "AttentionCase",
    "Measurement",
    "compile_power",
    "make_inputs",
    "measure_attention",
    "measure_memory",
    "write_csv",
]

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class AttentionCase:
    """What is measured: batch, heads, head width K = V, power, whether there are gates, and the inputs' dtype."""

    batch_size: int = 1
    heads: int = 8
    head_width: int = 32
    p: int = 2
    gated: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Measurement:
    """One length; seconds are medians of forward + backward, None where that contestant was not run."""

    tokens: int
    power_seconds: float
    softmax_seconds: float | None
    power_microseconds_per_token: float
    ratio: float | None  # softmax over power: above 1, power attention is faster


def compile_power(case: AttentionCase, *, dynamic: bool | None = True) -> Attend:
    """Power attention, compiled whole; dynamic: as in `torch.compile`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_attention(q, k, v, log_g, p=case.p).o

    return torch.compile(attend, fullgraph=True, dynamic=dynamic)


def _softmax(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def make_inputs(case: AttentionCase, tokens: int, *, heads_first: bool) -> list[Tensor]:
    """Random q, k, v and log_g in the layout that the contestant likes best, requiring gradients.

    q, k and v are `[B, T, H, K]`, or `[B, H, T, K]` where heads come first; log_g is `[B, T, H]` in float32.
    """
    generator = torch.Generator(case.device).manual_seed(tokens)
    B, H, K = case.batch_size, case.heads, case.head_width
    shape = (B, H, tokens, K) if heads_first else (B, tokens, H, K)
    inputs = [torch.randn(shape, generator=generator, device=case.device, dtype=case.dtype) for _ in range(3)]
    # Retention around 0.9 to 0.9999 a token, spread over heads, as gated mixers start out.
    logits = torch.linspace(math.log(9), math.log(9999), H, device=case.device)
    log_g = F.logsigmoid(logits + torch.randn(B, tokens, H, generator=generator, device=case.device))
    return [x.requires_grad_() for x in (*inputs, log_g)]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _time(attend: Attend, inputs: list[Tensor], gated: bool, device: str) -> float:
    """Seconds of one forward and backward pass."""
    q, k, v, log_g = inputs
    wanted = [q, k, v, log_g] if gated else [q, k, v]
    _wait(device)
    start = time.perf_counter()
    o = attend(q, k, v, log_g if gated else None)
    torch.autograd.grad(o, wanted, torch.ones_like(o))
    _wait(device)
    return time.perf_counter() - start


def measure_attention(
    case: AttentionCase, lengths: Sequence[int], *, softmax_limit: int, repeats: int
) -> list[Measurement]:
    """Measure both contestants at every length.

    They take turns, and so do the lengths, so that a machine that is busy for a while is busy for all of them.

    Args:
        case: sizes and options.
        lengths: numbers of tokens.
        softmax_limit: the longest sequence that softmax attention, quadratic in length, is run at.
        repeats: timed runs a length and contestant, after one that is not timed; the median counts.

    Raises:
        InputError: a length or `repeats` below 1.
    """
    if repeats < 1 or not lengths or min(lengths) < 1:
        raise InputError(f"lengths, repeats: expected whole numbers from 1 on, was {list(lengths)}, {repeats}")
    power = compile_power(case)
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for tokens in lengths:
            elapsed = {"power": _time(power, make_inputs(case, tokens, heads_first=False), case.gated, case.device)}
            if tokens <= softmax_limit:
                inputs = make_inputs(case, tokens, heads_first=True)
                elapsed["softmax"] = _time(_softmax, inputs, gated=False, device=case.device)
            if repeat > 0:
                for name, value in elapsed.items():
                    seconds[name, tokens].append(value)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return [_measurement(case, tokens, median["power", tokens], median.get(("softmax", tokens))) for tokens in lengths]


def _measurement(case: AttentionCase, tokens: int, power: float, softmax: float | None) -> Measurement:
    return Measurement(
        tokens=tokens,
        power_seconds=power,
        softmax_seconds=softmax,
        power_microseconds_per_token=power / tokens / case.batch_size * 1e6,
        ratio=None if softmax is None else softmax / power,
    )


def _resident_bytes(field: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak) of this process, from Linux's /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise InputError(f"memory: /proc/self/status has no {field}; leave memory out on this system")


def _peak_bytes(case: AttentionCase, tokens: int, sender: Connection) -> None:
    """In a process of its own: how much resident memory grows at most in one forward and backward pass."""

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_attention(q, k, v, log_g, p=case.p).o

    _time(attend, make_inputs(case, 64, heads_first=False), case.gated, case.device)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak afresh
    _time(attend, make_inputs(case, tokens, heads_first=False), case.gated, case.device)
    sender.send(_resident_bytes("VmHWM") - before)


def measure_memory(case: AttentionCase, lengths: Sequence[int]) -> dict[int, int]:
    """Peak bytes of power attention forward + backward, inputs and gradients included, by length.

    On the CPU, and on Linux, which tells a process its peak.

    Raises:
        InputError: on another system, or when a length does not fit in memory.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory: can be measured on Linux only; leave it out here")
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for tokens in lengths:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_peak_bytes, args=(case, tokens, sender))
        process.start()
        sender.close()
        try:
            peaks[tokens] = int(receiver.recv())
        except EOFError:
            raise InputError(
                f"lengths: measuring the memory of {tokens} tokens failed, probably for lack of it"
            ) from None
        finally:
            process.join()
    return peaks


def write_csv(measurements: Sequence[Measurement], path: Path) -> None:
    """Write one line a length, with the field names of `Measurement` as header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measurement)])
        writer.writeheader()
        writer.writerows(asdict(measurement) for measurement in measurements)
