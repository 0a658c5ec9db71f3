"""Measure power attention beside its peers, forward and backward, over lengths, widths and powers, in one run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch._dynamo

from zoo.bench.attention import AttentionCase
from zoo.bench.contestants import Contestant
from zoo.bench.entrant import BOTH, FORWARD, Entrant, Outcome
from zoo.bench.timing import Ceilings, Timer
from zoo.kernels.power import Heads, forward_flops
from zoo.kernels.power.flops import backward_flops

__all__ = ["OpBenchmark", "OpMeasurement", "measure_op"]

_TUNING_LENGTH = 65536  # block sizes that are searched for should suit long sequences


@dataclass(frozen=True)
class OpBenchmark:
    """What is measured; head widths are K = V."""

    lengths: tuple[int, ...]
    head_widths: tuple[int, ...]
    powers: tuple[int, ...]
    contestants: tuple[Contestant, ...]
    batch_size: int = 1
    heads: int = 8
    gated: bool = True
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"
    quadratic_limit: int = 262144  # the longest sequence for softmax attention

    def case(self, head_width: int, p: int) -> AttentionCase:
        return AttentionCase(self.batch_size, self.heads, head_width, p, self.gated, self.device, self.dtype)


@dataclass(frozen=True)
class OpMeasurement:
    """One contestant, length and pass; without seconds it was not run, and `absent` says why unless it is too long."""

    contestant: str
    head_width: int
    p: int
    tokens: int
    passes: str  # FORWARD or BOTH
    seconds: float | None  # the median
    fast_seconds: float | None  # quantile at 20%
    slow_seconds: float | None  # quantile at 80%
    peak_bytes: int | None  # most memory at a time beyond the inputs, forward and backward, on a GPU
    flops_per_second: float | None  # of our op, counted at the packed size of the state
    matmul_share: float | None  # of what a matrix product reaches
    copy_share: float | None  # bytes of inputs, outputs and gradients, each once, beside what a copy moves
    absent: str


def measure_op(
    benchmark: OpBenchmark, head_width: int, timer: Timer, ceilings: Ceilings, say: Callable[[str], None]
) -> Iterator[OpMeasurement]:
    """Yield measurements at one head width as they are made, at each length all contestants in turn.

    A contestant that cannot run, or has no memory left, is yielded without seconds, and the others go on. Softmax
    attention runs once for all powers.

    Args:
        benchmark: what to measure.
        head_width: one of the benchmark's.
        timer: how.
        ceilings: what shares are of.
        say: is told what takes long.
    """
    lengths = benchmark.lengths
    cases = len(benchmark.head_widths) * len(benchmark.powers)
    long = max((length for length in lengths if length <= _TUNING_LENGTH), default=min(lengths))
    with torch._dynamo.config.patch(recompile_limit=8 + 2 * cases * len(lengths)):
        entrants = [
            (Entrant(contestant, benchmark.case(head_width, powers[0])), powers)
            for contestant in benchmark.contestants
            for powers in ([benchmark.powers] if contestant.softmax else [(p,) for p in benchmark.powers])
        ]
        for entrant, _ in entrants:
            entrant.tune(long, say)
        for tokens in lengths:
            for entrant, powers in entrants:
                too_long = entrant.contestant.softmax and tokens > benchmark.quadratic_limit
                for passes in (FORWARD, BOTH):
                    outcome = Outcome() if too_long else entrant.measure(tokens, passes, timer)
                    for p in powers:
                        yield _measurement(entrant, p, tokens, passes, outcome, ceilings)


def _measurement(
    entrant: Entrant, p: int, tokens: int, passes: str, outcome: Outcome, ceilings: Ceilings
) -> OpMeasurement:
    seconds, fast, slow = outcome.timing or (None, None, None)
    flops = moved = None
    if entrant.contestant.ours and seconds is not None:
        flops, moved = (amount / seconds for amount in _work(entrant.case, tokens, passes))
    return OpMeasurement(
        contestant=entrant.contestant.name,
        head_width=entrant.case.head_width,
        p=p,
        tokens=tokens,
        passes=passes,
        seconds=seconds,
        fast_seconds=fast,
        slow_seconds=slow,
        peak_bytes=outcome.peak_bytes,
        flops_per_second=flops,
        matmul_share=None if flops is None else flops / ceilings.matmul,
        copy_share=None if moved is None else moved / ceilings.copy,
        absent=outcome.absent,
    )


def _work(case: AttentionCase, tokens: int, passes: str) -> tuple[int, int]:
    """FLOPs, and bytes of inputs, outputs and, with a backward pass, their gradients."""
    B, H, K = case.batch_size, case.heads, case.head_width
    sizes = (B, tokens, Heads(H, H, H), K, K, case.p)
    tensors = 4 * B * tokens * H * K * case.dtype.itemsize + (4 * B * tokens * H if case.gated else 0)
    if passes == FORWARD:
        return forward_flops(*sizes), tensors
    return forward_flops(*sizes) + backward_flops(*sizes), 2 * tensors
