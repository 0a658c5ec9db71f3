"""Who takes part in benchmarks of ops: power attention, softmax attention by backend, and peers that are installed."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.bench.engine import OUT_OF_MEMORY, Result, Row, attempt, first_line
from zoo.bench.memory import gpu_peak_bytes, process_peak_bytes
from zoo.bench.timing import Run, Timer, Timing
from zoo.errors import InputError, nearest
from zoo.kernels.power import power_attention

__all__ = [
    "BOTH", "CONTESTANTS", "FORWARD", "Case", "Contestant", "Refusal", "Subject", "compile_power", "import_peer",
    "make_inputs", "select",
]  # fmt: skip

FORWARD, BOTH = "forward", "forward+backward"


class Case(NamedTuple):
    """The inputs of an op: K = V = `head_width`; gates of float32 where it is gated."""

    batch_size: int = 1
    heads: int = 8
    head_width: int = 32
    p: int = 2
    gated: bool = False
    documents: int = 1  # in a row, of `packed-softmax`
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


Mix = Callable[..., Tensor]
"""A function of an op's inputs; of power attention and its peers: q, k, v and gates or None."""


def make_inputs(case: Case, tokens: int, contestant: "Contestant") -> list[Tensor | None]:
    """Random q, k, v and, where both are gated, log_g in the layout that the contestant likes best, with gradients.

    q, k and v are `[B, T, H, K]`, or `[B, H, T, K]` for softmax attention; log_g is `[B, T, H]` in float32.
    """
    generator = torch.Generator(case.device).manual_seed(tokens)
    B, H, K = case.batch_size, case.heads, case.head_width
    shape = (B, H, tokens, K) if contestant.softmax else (B, tokens, H, K)
    q, k, v = (torch.randn(shape, generator=generator, device=case.device, dtype=case.dtype) for _ in range(3))
    # Retention around 0.9 to 0.9999 a token, spread over heads, as gated mixers start out.
    logits = torch.linspace(math.log(9), math.log(9999), H, device=case.device)
    log_g = F.logsigmoid(logits + torch.randn(B, tokens, H, generator=generator, device=case.device))
    gated = case.gated and not contestant.softmax
    return [None if x is None else x.requires_grad_() for x in (q, k, v, log_g if gated else None)]


def compile_power(case: Case, *, dynamic: bool | None = True) -> Mix:
    """Power attention, compiled whole; dynamic: as in `torch.compile`."""
    return torch.compile(_power(case), fullgraph=True, dynamic=dynamic)


def _power(case: Case) -> Mix:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_attention(q, k, v, log_g, p=case.p).o

    return attend


class Refusal(Exception):  # noqa: N818 (an answer, not an error)
    """A contestant cannot take part; says why in one line."""


@dataclass(frozen=True)
class Contestant:
    """One who can be measured on any case."""

    name: str
    build: Callable[[Case], Mix]
    """Returns a function of the inputs, all `[B, T, H, K]`. Raises `Refusal`."""
    check_backward: Callable[[Case], None] = lambda _case: None
    """Raises `Refusal` where the backward pass is known to be refused, which spares tuning it."""
    inputs: Callable[[Case, int, "Contestant"], list[Tensor | None]] = make_inputs
    """Makes the inputs of so many tokens."""
    softmax: bool = False
    """Softmax attention takes heads first, has neither gates nor a power, and is quadratic in the length."""
    ours: bool = False
    """Whether it is the op of this library, whose work is counted."""
    static: bool = False
    """Whether it is compiled for each length by itself, rather than once for all."""
    tunes: bool = False
    """Whether the first call searches for block sizes, which can take minutes."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around all calls."""


def select(kind: str, names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """Return names, each once, or raise `InputError` for one that is not `known`; `kind` says what they are."""
    for name in names:
        if name not in known:
            raise InputError(f"{kind}: expected some of {', '.join(known)}, was {name!r}{nearest(name, known)}")
    return list(dict.fromkeys(names))


class Subject:
    """A contestant on one case; what it refuses, but for lack of memory, it is not asked again.

    `memory`: measure that of our op on a CPU too."""

    def __init__(self, contestant: Contestant, case: Case, *, memory: bool = False) -> None:
        self.contestant, self.case = contestant, case
        self._memory = memory and contestant.ours
        self._refused: dict[str, str] = {}
        try:
            self._mix = contestant.build(case)
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

    def measure(self, tokens: int, passes: str, timer: Timer) -> Row:
        """Time one pass, and measure its peak memory: FORWARD, with nothing kept for a backward pass, or BOTH."""
        gpu = self.case.device.startswith("cuda")

        def measure() -> tuple[Timing, int | None]:
            call = self._call(tokens, passes)
            return timer(call), gpu_peak_bytes(call) if gpu else None

        found, reason = self._attempt(passes, measure)
        timing, peak = found or (None, None)
        if timing is not None and self._memory and not gpu and passes == BOTH:
            peak = process_peak_bytes(*(partial(_one_pass, self.case, size) for size in (64, tokens)))
        return Row(self.contestant.name, tokens, timing, reason, {"passes": passes, "peak_bytes": peak})

    def _call(self, tokens: int, passes: str) -> Run:
        """Return a call without arguments, on fresh random inputs and output gradients."""
        inputs = self.contestant.inputs(self.case, tokens, self.contestant)
        wanted = [x for x in inputs if x is not None]
        if not self.contestant.static:
            for x in wanted:
                torch._dynamo.maybe_mark_dynamic(x, 1)  # one compilation for all lengths
        if passes == FORWARD:
            return torch.no_grad()(lambda: self._mix(*inputs))
        do = torch.randn_like(wanted[2])  # v, or k, of the same shape
        return lambda: torch.autograd.grad(self._mix(*inputs), wanted, do)

    def _attempt(self, passes: str, run: Callable[[], Result]) -> tuple[Result | None, str]:
        """Return what `run` returns, or None and why not."""
        if passes in self._refused:
            return None, self._refused[passes]
        with self.contestant.context():
            found, reason = attempt(run, torch.device(self.case.device))
        if reason and reason != OUT_OF_MEMORY:
            self._refused |= dict.fromkeys((FORWARD, BOTH) if passes == FORWARD else (BOTH,), reason)
        return found, reason


def _one_pass(case: Case, tokens: int) -> None:
    """Our op forward and backward, not compiled, in a process whose memory is measured."""
    inputs = make_inputs(case, tokens, CONTESTANTS["power"])
    o = _power(case)(*inputs)
    torch.autograd.grad(o, [x for x in inputs if x is not None], torch.ones_like(o))


def _softmax(name: str, backend: SDPBackend | None = None) -> Contestant:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    context = nullcontext if backend is None else partial(sdpa_kernel, backend)
    return Contestant(name, lambda _: attend, softmax=True, context=context)


def import_peer(module: str, attribute: str, package: str) -> Callable[..., Any]:
    """Import a peer's function, or raise `Refusal`."""
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or module).partition(".")[0] == module.partition(".")[0]:
            raise Refusal(f"not installed (pip install {package})") from None
        raise Refusal(f"needs {error.name}, which is not installed") from None
    except Exception as error:
        raise Refusal(f"cannot be imported: {first_line(error)}") from error
    return function


def _build_retention(case: Case) -> Mix:
    """The package's Triton implementation, in chunks as long as in its own benchmark."""
    if case.p != 2:
        raise Refusal("has only p = 2")
    if case.head_width not in (32, 64, 128):
        raise Refusal("has only head widths 32, 64 and 128")
    power_retention = import_peer("retention.triton", "power_retention", "retention")

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_retention(q, k, v, log_g, deg=2, chunk_size=1024)

    return _compiled_if_possible(attend)


def _compiled_if_possible(attend: Mix) -> Mix:
    """Compile in parts, as far as the compiler comes; where it fails, eager from then on."""
    chosen = compiled = torch.compile(attend)

    def attend_as_chosen(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        nonlocal chosen
        try:
            return chosen(q, k, v, log_g)
        except TorchDynamoException:
            if chosen is not compiled:
                raise
            chosen = attend
            return attend(q, k, v, log_g)

    return attend_as_chosen


def _build_fla(case: Case) -> Mix:
    """`chunk_simple_gla`, which is not for compiling."""
    if case.p != 1:
        raise Refusal("has only p = 1")
    chunk_simple_gla = import_peer("fla.ops.simple_gla", "chunk_simple_gla", "flash-linear-attention")

    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return chunk_simple_gla(q, k, v, g=log_g)[0]

    return attend


def _check_fla_backward(case: Case) -> None:
    """Know what the package refuses, but only after it has tuned most of its backward kernels."""
    utils: Any = importlib.import_module("fla.utils")
    names = ("IS_NVIDIA_HOPPER", "TRITON_ABOVE_3_4_0", "TRITON_ABOVE_3_7_1")
    hopper, from_3_4_0, from_3_7_1 = (getattr(utils, name, False) for name in names)
    tilelang = importlib.util.find_spec("tilelang") is not None  # has a kernel of its own
    if case.gated and hopper and from_3_4_0 and not from_3_7_1 and not tilelang:
        raise Refusal("its gated backward pass refuses to run on Hopper with Triton 3.4.0 to 3.7.0")


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("power", partial(compile_power, dynamic=None), ours=True),
        Contestant("power-static", partial(compile_power, dynamic=False), ours=True, static=True),
        _softmax("softmax"),
        _softmax("softmax-cudnn", SDPBackend.CUDNN_ATTENTION),
        _softmax("softmax-flash", SDPBackend.FLASH_ATTENTION),
        _softmax("softmax-math", SDPBackend.MATH),
        Contestant("retention", _build_retention, tunes=True),
        Contestant("fla", _build_fla, check_backward=_check_fla_backward, tunes=True),
    )
}
