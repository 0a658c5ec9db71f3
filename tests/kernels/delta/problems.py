"""Random problems for the delta rule: a strategy, what one run of a problem gives, and how far it may be off.

Hypothesis draws the structure (sizes, heads, gates, rates, layouts) and a seed; values are random numbers from that
seed, so that a failing example shrinks to the smallest structure that still fails.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.delta import delta_attention
from zoo.kernels.power import state_size

from ..layouts import lay_out

IMPLEMENTATIONS = ("chunked", "recurrent")
GATES = ("none", "zeros", "mild", "strong", "resets", "mixed")
RATES = ("none", "half", "any", "near two", "zeros", "ones")
KEYS = ("any", "any", "any", "repeated", "zeros")
LAYOUTS = ("contiguous", "heads first", "strided", "reversed widths", "expanded")
TOKENS = ("q", "k", "v", "log_g", "beta")
# A few of float32's last digits, and of float64's.
DIGITS = {torch.float32: 1e-5, torch.float64: 1e-12}
# The widest key for each p, so that states have at most 200 rows; wider than a tile of 8 channels where that allows.
_WIDEST_KEY = {1: 24, 2: 18, 3: 9}

Tensors = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class Problem:
    """One call of `delta_attention`, and the gradients that come back to its results (None: that is not used)."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    beta: Tensor | None
    S: Tensor | None
    do: Tensor | None
    dS: Tensor | None  # noqa: N815 - the state's gradient
    p: int = 1
    scale: float = 1.0
    chunk_size: int | None = None

    @property
    def T(self) -> int:  # noqa: N802 - the shape legend
        return self.q.shape[1]

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype of sums and states."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def tensors(self) -> Tensors:
        """The differentiable inputs that are there, by name."""
        found = {name: getattr(self, name) for name in (*TOKENS, "S")}
        return {name: x for name, x in found.items() if x is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """The problem with `change` done to every tensor in it."""
        names = (*TOKENS, "S", "do", "dS")
        return replace(self, **{n: change(x) for n in names if (x := getattr(self, n)) is not None})

    def double(self) -> "Problem":
        """The same numbers in float64."""
        return self.map(lambda x: x.detach().double())

    def tokens(self, start: int, stop: int) -> "Problem":
        """Only the tokens from `start` to `stop`."""
        names = (*TOKENS, "do")
        return replace(self, **{n: x[:, start:stop] for n in names if (x := getattr(self, n)) is not None})

    def row(self, i: int) -> "Problem":
        """Only one row of the batch."""
        return self.map(lambda x: x[i : i + 1])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what hypothesis prints
        printer.text(repr(self))

    def __repr__(self) -> str:
        gates, rates = (
            None if x is None else (list(x.shape), [round(y, 3) for y in x.flatten().tolist()[:4]])
            for x in (self.log_g, self.beta)
        )
        return (
            f"Problem(q={list(self.q.shape)}, k={list(self.k.shape)}, v={list(self.v.shape)}, p={self.p}, "
            f"scale={self.scale:.3g}, chunk_size={self.chunk_size}, {self.q.dtype}, log_g={gates}, beta={rates}, "
            f"S={self.S is not None}, do={self.do is not None}, dS={self.dS is not None}, "
            f"strides={self.q.stride()}, {self.k.stride()}, {self.v.stride()})"
        )


def attend(problem: Problem, impl: str | None = None, **changes: Any) -> tuple[Tensor, Tensor]:
    """Output and final state of a problem."""
    options = {
        "p": problem.p, "scale": problem.scale, "state": problem.S, "return_state": True,
        "chunk_size": problem.chunk_size, "impl": impl, **changes,
    }  # fmt: skip
    o, state = delta_attention(*(getattr(problem, name) for name in TOKENS), **options)
    assert state is not None
    return o, state


def run(problem: Problem, impl: str | None = None, **changes: Any) -> Tensors:
    """Results and gradients by name: `o`, `S_out`, and `d<input>`."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    o, S = attend(replace(problem, **leaves), impl, **changes)
    return differentiate(problem, {"o": o, "S_out": S}, leaves)


def differentiate(problem: Problem, results: Tensors, leaves: Tensors) -> Tensors:
    """The results, detached, and gradients of `leaves`; zeros where nothing depends on a leaf."""
    sources = {"o": problem.do, "S_out": problem.dS}
    used = [name for name, dx in sources.items() if dx is not None and results[name].requires_grad]
    found = {name: x.detach() for name, x in results.items()}
    if not used:
        return found | {f"d{name}": torch.zeros_like(x) for name, x in leaves.items()}
    grads = torch.autograd.grad(
        [results[name] for name in used],
        list(leaves.values()),
        [sources[name] for name in used],
        allow_unused=True,
        materialize_grads=True,
    )
    return found | {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def make_gates(kind: str, shape: Sequence[int], random: torch.Generator) -> Tensor | None:
    """Log gates of one of the kinds in `GATES`, float64."""
    if kind == "none":
        return None
    mild = -torch.rand(*shape, generator=random, dtype=torch.float64) * 0.5
    chance = torch.rand(*shape, generator=random)
    match kind:
        case "zeros":
            return torch.zeros_like(mild)
        case "mild":
            return mild
        case "strong":
            return mild * 4 - 50
        case "resets":
            return torch.where(chance < 0.25, -torch.inf, mild)
        case _:
            gates = torch.where(chance < 0.1, -torch.inf, torch.where(chance < 0.4, 100 * mild, mild))
            return torch.where(chance > 0.8, 0, gates)


def make_rates(kind: str, shape: Sequence[int], random: torch.Generator) -> Tensor | None:
    """Rates of writing of one of the kinds in `RATES`, float64."""
    any_rates = torch.rand(*shape, generator=random, dtype=torch.float64)
    match kind:
        case "none":
            return None
        case "half":
            return any_rates
        case "any":
            return 2 * any_rates
        case "near two":
            return 2 - any_rates / 100
        case "zeros":
            return torch.zeros_like(any_rates)
        case _:
            return torch.ones_like(any_rates)


@st.composite
def _lengths(draw: st.DrawFn, shortest: int, longest: int) -> tuple[int, int | None]:
    """Tokens and chunk size: often a whole number of chunks, or one token more or less."""
    if draw(st.booleans()):
        chunk = draw(st.integers(1, max(1, longest // 3)))
        T = chunk * draw(st.integers(1, 3)) + draw(st.integers(-1, 1))
        return max(shortest, T), chunk
    T = max(shortest, draw(st.sampled_from([0, 1]) | st.integers(2, longest)))
    return T, draw(st.none() | st.integers(1, T + 3))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    batches: int = 3,
    gates: Sequence[str] = GATES,
    channels: bool | None = None,
    rates: Sequence[str] = RATES,
    state: bool | None = None,
    shortest: int = 0,
    longest: int = 24,
    powers: Sequence[int] = (1, 1, 2, 3),
    most_heads: int = 4,
    widths: Sequence[int] | None = None,
) -> Problem:
    """A random problem; the arguments narrow what is drawn (None: both, or for widths of keys and values any).

    channels: gates for each key channel.
    """
    p = draw(st.sampled_from([p for p in powers if p == 1 or not channels]))
    channels = (p == 1 and draw(st.booleans())) if channels is None else channels
    (T, chunk_size), B, heads = (
        draw(_lengths(shortest, longest)),
        draw(st.integers(1, batches)),
        draw(st.integers(1, most_heads)),
    )
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    query, key = draw(st.sampled_from(divisors)), draw(st.sampled_from(divisors))
    K = draw(st.integers(1, _WIDEST_KEY[p]) if widths is None else st.sampled_from(widths))
    V = draw(st.integers(1, 9) if widths is None else st.sampled_from(widths))
    dtype = draw(st.sampled_from(dtypes))
    scale = draw(st.just(1 / math.sqrt(K)) | st.sampled_from([1.0, 0.3, -0.7]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    accumulation = torch.promote_types(dtype, torch.float32)

    def lay(x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
        return lay_out(x.to(dtype), draw(st.sampled_from(LAYOUTS)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k, v = normal(B, T, query, K), F.normalize(normal(B, T, key, K), dim=-1), normal(B, T, heads, V)
    match draw(st.sampled_from(KEYS)):
        case "repeated":  # systems of the errors are as near to singular as they come
            k = k[:, :1].expand(k.shape)
        case "zeros":
            k = torch.where(torch.rand(B, T, key, 1, generator=random) < 0.3, 0, k)
    log_g = make_gates(draw(st.sampled_from(gates)), (B, T, heads, K) if channels else (B, T, heads), random)
    beta = make_rates(draw(st.sampled_from(rates)), (B, T, heads), random)
    has_state = draw(st.booleans()) if state is None else state
    shape = (B, heads, state_size(K, p), V)
    S = lay(normal(*shape), accumulation) if has_state else None
    used = draw(st.sampled_from([{"o", "S"}, {"o"}, {"S"}]))
    do = lay(normal(B, T, heads, V)) if "o" in used else None
    dS = lay(normal(*shape), accumulation) if "S" in used else None
    log_g = None if log_g is None else log_g.to(accumulation)
    beta = None if beta is None else beta.to(draw(st.sampled_from([dtype, accumulation])))
    return Problem(lay(q), lay(k), lay(v), log_g, beta, S, do, dS, p, scale, chunk_size)


def random_problem(
    T: int,
    *,
    gates: str = "mild",
    channels: bool = False,
    rates: str = "half",
    p: int = 1,
    shape: tuple[int, int, int, int] = (1, 2, 16, 16),
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """A problem of `shape` B, H, K, V, with a state and both gradients."""
    random = torch.Generator().manual_seed(0)
    B, H, K, V = shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k = (F.normalize(normal(B, T, H, K), dim=-1) for _ in range(2))
    v, do, S, dS = normal(B, T, H, V), normal(B, T, H, V), *(normal(B, H, state_size(K, p), V) for _ in range(2))
    log_g = make_gates(gates, (B, T, H, K) if channels else (B, T, H), random)
    beta, accumulation = make_rates(rates, (B, T, H), random), torch.promote_types(dtype, torch.float32)
    q, k, v, do = (x.to(dtype) for x in (q, k, v, do))
    log_g, beta, S, dS = (None if x is None else x.to(accumulation) for x in (log_g, beta, S, dS))
    return Problem(q, k, v, log_g, beta, S, do, dS, p)


def scale(problem: Problem, name: str, reference: Tensor) -> float:
    """What errors of a result are relative to: its size, or what it is made of where nearly all of that cancelled.

    A state is made of a token's values, an output of that times the scale, a gradient of those of the results.
    """
    values = float(problem.v.double().norm()) / max(1, problem.T) ** 0.5
    match name:
        case "S_out":
            sources = [values]
        case "o":
            sources = [abs(problem.scale) ** problem.p * values]
        case _:
            sources = [float(x.norm()) for x in (problem.do, problem.dS) if x is not None]
    return max(float(reference.norm()), *sources)


def check_error_law(problem: Problem, impl: str, baseline: Tensors | None = None) -> None:
    """Assert `err(ours) <= 1.5 err(baseline) + digits`, in L2, against the float64 recurrence.

    The baseline is the recurrence in the same dtype, if there is no other.
    """
    reference, ours = run(problem.double(), "recurrent"), run(problem, impl)
    if baseline is None:
        baseline = reference if problem.q.dtype == torch.float64 else run(problem, "recurrent")
    for name, exact in reference.items():
        error, allowed = (float((x[name].double() - exact).norm()) for x in (ours, baseline))
        tiny = DIGITS[problem.accumulation] * scale(problem, name, exact)
        assert error <= 1.5 * allowed + tiny, f"{name}: error {error:.2e}, baseline {allowed:.2e}, tiny {tiny:.2e}"


def check_same(problem: Problem, ours: Tensors, theirs: Tensors) -> None:
    """Assert that two ways of solving a problem differ by rounding only."""
    digits = DIGITS[problem.accumulation]
    for name, expected in theirs.items():
        expected, found = expected.double(), ours[name].double()
        difference = float((found - expected).norm())
        narrow = torch.finfo(problem.q.dtype).eps if problem.q.dtype != problem.accumulation else 0
        tiny = (2 * digits + narrow) * scale(problem, name, expected)
        assert difference <= tiny, f"{name}: difference {difference:.2e}, allowed {tiny:.2e}"
