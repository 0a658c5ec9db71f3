"""A contestant at one head width and power: runs it, and takes its refusals and its lack of memory for an answer."""

import gc
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch._dynamo

from zoo.bench.attention import AttentionCase, make_inputs
from zoo.bench.contestants import Contestant, Refusal, first_line
from zoo.bench.timing import Run, Timer, Timing
from zoo.training.memory import is_out_of_memory

__all__ = ["BOTH", "FORWARD", "OUT_OF_MEMORY", "Entrant", "Outcome", "peak_bytes", "reason_of"]

FORWARD, BOTH = "forward", "forward+backward"
OUT_OF_MEMORY = "out of memory"
Result = TypeVar("Result")


class Outcome(NamedTuple):
    """A time, or why there is none."""

    timing: Timing | None = None
    peak_bytes: int | None = None  # beyond the inputs, forward and backward, on a GPU
    absent: str = ""


class Entrant:
    """What it is known to refuse, other than for lack of memory, is not tried again."""

    def __init__(self, contestant: Contestant, case: AttentionCase) -> None:
        self.contestant, self.case = contestant, case
        self._refused: dict[str, str] = {}
        try:
            self._attend = contestant.build(case)
        except Refusal as error:
            self._refused = dict.fromkeys((FORWARD, BOTH), str(error))
            return
        try:
            contestant.check_backward(case)
        except Refusal as error:
            self._refused[BOTH] = str(error)

    def tune(self, tokens: int, say: Callable[[str], None]) -> None:
        """Let a contestant that searches for block sizes do so at this length."""
        if not self.contestant.tunes or FORWARD in self._refused:
            return
        say(f"{self.contestant.name} tunes itself for K = {self.case.head_width}, which can take minutes")
        for passes in (FORWARD, BOTH):
            self._attempt(passes, lambda passes=passes: self._call(tokens, passes)())  # type: ignore[misc]

    def measure(self, tokens: int, passes: str, timer: Timer) -> Outcome:
        """Time one pass: FORWARD, with nothing kept for a backward pass, or BOTH."""

        def run() -> Outcome:
            call = self._call(tokens, passes)
            return Outcome(timer(call), peak_bytes(call, self.case.device) if passes == BOTH else None)

        outcome, reason = self._attempt(passes, run)
        return outcome or Outcome(absent=reason)

    def _call(self, tokens: int, passes: str) -> Run:
        """Return a call without arguments, on fresh random inputs and output gradients."""
        inputs = make_inputs(self.case, tokens, heads_first=self.contestant.softmax)
        if not self.contestant.static:
            for x in inputs:
                torch._dynamo.maybe_mark_dynamic(x, 1)  # one compilation for all lengths
        q, k, v, gates = inputs
        gated = self.case.gated and not self.contestant.softmax
        log_g, wanted = (gates, inputs) if gated else (None, inputs[:3])
        if passes == FORWARD:
            return torch.no_grad()(lambda: self._attend(q, k, v, log_g))
        do = torch.randn_like(v)
        return lambda: torch.autograd.grad(self._attend(q, k, v, log_g), wanted, do)

    def _attempt(self, passes: str, run: Callable[[], Result]) -> tuple[Result | None, str]:
        """Return what `run` returns, or None and why not."""
        if passes in self._refused:
            return None, self._refused[passes]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with self.contestant.context():
                    return run(), ""
            except Exception as error:
                reason = reason_of(error, [str(warning.message) for warning in caught])
        # Only here, without the error, are its frames gone, which hold tensors.
        gc.collect()
        if reason != OUT_OF_MEMORY:
            self._refused |= dict.fromkeys((FORWARD, BOTH) if passes == FORWARD else (BOTH,), reason)
        elif self.case.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return None, reason


def peak_bytes(call: Run, device: str) -> int | None:
    """Return the most memory that a call has at a time beyond what is there before; None if it is not a GPU's."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def reason_of(error: BaseException, warned: list[str]) -> str:
    """Say in one line why a contestant cannot run."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if "No available kernel" in str(error):
        # What an attention backend has against the inputs comes as warnings, among those about the ones switched off.
        causes = [text for text in warned if "not used because" not in text and "runtime disabled" not in text]
        if causes:
            return first_line(RuntimeError(causes[0].partition(" (Triggered")[0]))
    return first_line(error)
