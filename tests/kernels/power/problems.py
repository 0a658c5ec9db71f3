"""Random problems for power attention: a strategy, and what one run of a problem gives.

Hypothesis draws the structure (sizes, heads, gates, layouts) and a seed; values are normal numbers from that seed, so
that a failing example shrinks to the smallest structure that still fails.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from zoo.kernels.power import Heads, PowerState, power_attention, state_size
from zoo.kernels.power.call import Inputs
from zoo.kernels.power.reference import recurrent

from ..layouts import lay_out

IMPLEMENTATIONS = ("chunked", "quadratic", "recurrent")
GATES = ("none", "zeros", "mild", "strong", "resets", "mixed")
GATE_LAYOUTS = ("contiguous", "heads first", "expanded")
LAYOUTS = ("contiguous", "heads first", "strided", "reversed widths", "expanded")
# The widest key for each p, so that states have at most 200 rows; wider than a tile of 8 channels where that allows.
_WIDEST_KEY = {1: 24, 2: 18, 3: 9, 4: 6}

Tensors = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class Problem:
    """One call of power attention, and the gradients that come back to its results (None: that result is not used)."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    S: Tensor | None
    z: Tensor | None
    do: Tensor | None
    dS: Tensor | None  # noqa: N815 - the state's gradient
    dz: Tensor | None
    p: int
    scale: float
    normalize: bool
    chunk_size: int | None
    offset: Tensor | None = None

    @property
    def heads(self) -> Heads:
        return Heads(self.q.shape[2], self.k.shape[2], self.v.shape[2])

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype of sums and states."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def tensors(self) -> Tensors:
        """The differentiable inputs that are there, by name."""
        found = {name: getattr(self, name) for name in ("q", "k", "v", "log_g", "S", "z", "offset")}
        return {name: x for name, x in found.items() if x is not None}

    @property
    def gradients(self) -> Tensors:
        """The results' gradients that are there, by the result's name."""
        found = {"o": self.do, "S_out": self.dS, "z_out": self.dz}
        return {name: x for name, x in found.items() if x is not None}

    @property
    def state(self) -> PowerState | None:
        return None if self.S is None or self.z is None else PowerState(self.S, self.z)

    @property
    def options(self) -> dict[str, Any]:
        return {**self.step_options, "chunk_size": self.chunk_size}

    @property
    def step_options(self) -> dict[str, Any]:
        offset = 0.0 if self.offset is None else self.offset
        return {"p": self.p, "scale": self.scale, "normalize": self.normalize, "offset": offset}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Problem":
        """The problem with `change` done to every tensor in it."""
        names = ("q", "k", "v", "log_g", "S", "z", "do", "dS", "dz", "offset")
        return replace(self, **{n: change(x) for n in names if (x := getattr(self, n)) is not None})

    def double(self) -> "Problem":
        """The same numbers in float64."""
        return self.map(lambda x: x.detach().double())

    def tokens(self, start: int, stop: int) -> "Problem":
        """Only the tokens from `start` to `stop`."""
        names = ("q", "k", "v", "log_g", "do")
        return replace(self, **{n: x[:, start:stop] for n in names if (x := getattr(self, n)) is not None})

    def row(self, i: int) -> "Problem":
        """Only one row of the batch."""
        return replace(self.map(lambda x: x[i : i + 1]), offset=self.offset)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what hypothesis prints
        printer.text(repr(self))

    def __repr__(self) -> str:
        B, T, Hq, K = self.q.shape
        gates = None if self.log_g is None else [round(x, 3) for x in self.log_g.flatten().tolist()[:6]]
        return (
            f"Problem(B={B}, T={T}, heads=({Hq}, {self.k.shape[2]}, {self.v.shape[2]}), K={K}, V={self.v.shape[-1]}, "
            f"p={self.p}, scale={self.scale:.3g}, normalize={self.normalize}, chunk_size={self.chunk_size}, "
            f"offset={None if self.offset is None else self.offset.tolist()}, "
            f"{self.q.dtype}, log_g={gates}, inputs={list(self.tensors)}, gradients of={list(self.gradients)}, "
            f"strides={self.q.stride()}, {self.k.stride()}, {self.v.stride()})"
        )


def attend(problem: Problem, impl: str | None = None, **changes: Any) -> tuple[Tensor, PowerState]:
    """Output and final state of a problem."""
    options = {**problem.options, "state": problem.state, "return_state": True, "impl": impl, **changes}
    result = power_attention(problem.q, problem.k, problem.v, problem.log_g, **options)
    assert result.state is not None
    return result.o, result.state


def run(problem: Problem, impl: str | None = None, **changes: Any) -> Tensors:
    """Results and gradients by name: `o`, `S_out`, `z_out`, and `dq`, `dk`, `dv`, `dlog_g`, `dS`, `dz`, `doffset`."""
    leaves = {name: x.detach().requires_grad_() for name, x in problem.tensors.items()}
    o, state = attend(replace(problem, **leaves), impl, **changes)
    results = {"o": o, "S_out": state.S, "z_out": state.z}
    found = differentiate(results, leaves, problem.gradients)
    return {name: x.detach() for name, x in results.items()} | found


def differentiate(results: Tensors, leaves: Tensors, gradients: Tensors) -> Tensors:
    """Gradients of `leaves`, as `d<name>`; zeros where nothing depends on a leaf."""
    used = [name for name in gradients if results[name].requires_grad]
    if not used:
        return {f"d{name}": torch.zeros_like(x) for name, x in leaves.items()}
    grads = torch.autograd.grad(
        [results[name] for name in used],
        list(leaves.values()),
        [gradients[name] for name in used],
        allow_unused=True,
        materialize_grads=True,
    )
    return {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


@st.composite
def head_counts(draw: st.DrawFn) -> Heads:
    """Counts by the head rule: grouped queries, shared keys, shared values, one state for many queries, ..."""
    states = draw(st.integers(1, 4))
    divisors = [n for n in range(1, states + 1) if states % n == 0]
    key, value = draw(st.permutations([states, draw(st.sampled_from(divisors))]))
    return Heads(draw(st.sampled_from([*divisors, 2 * states, 3 * states])), key, value)


@st.composite
def _lengths(draw: st.DrawFn, shortest: int, longest: int) -> tuple[int, int | None]:
    """Tokens and chunk size: often a whole number of chunks, or one token more or less."""
    if draw(st.booleans()):
        chunk = draw(st.integers(1, max(1, longest // 3)))
        T = chunk * draw(st.integers(1, 3)) + draw(st.integers(-1, 1))
        return max(shortest, T), chunk
    T = max(shortest, draw(st.sampled_from([0, 1]) | st.integers(2, longest)))
    return T, draw(st.none() | st.integers(1, T + 3))


def make_gates(kind: str, shape: Sequence[int], random: torch.Generator) -> Tensor | None:
    """Log gates `[B, T, Hv]` of one of the kinds in `GATES`, float32."""
    if kind == "none":
        return None
    mild = -torch.rand(*shape, generator=random) * 0.5
    chance = torch.rand(*shape, generator=random)
    match kind:
        case "zeros":
            return torch.zeros(*shape)
        case "mild":
            return mild
        case "strong":
            return mild * 4 - 50
        case "resets":
            return torch.where(chance < 0.25, -torch.inf, mild)
        case _:
            gates = torch.where(chance < 0.1, -torch.inf, torch.where(chance < 0.4, 100 * mild, mild))
            return torch.where(chance > 0.8, 0, gates)


def make_state(
    B: int, heads: int, K: int, V: int, p: int, tokens: int, random: torch.Generator, *, offset: bool = False
) -> tuple[Tensor, Tensor]:
    """S and z that a past of so many tokens left, float64; offset: for weights that have one."""
    k = torch.randn(B, tokens, heads, K, generator=random, dtype=torch.float64)
    v = torch.randn(B, tokens, heads, V, generator=random, dtype=torch.float64)
    offsets = k.new_ones(heads) if offset else None
    _, state = recurrent(Inputs(k, k, v, offset=offsets), p=p, scale=1.0, normalize=False)
    return state.S, state.z


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    batches: int = 3,
    gates: Sequence[str] = GATES,
    normalize: bool | None = None,
    state: bool | None = None,
    shortest: int = 0,
    longest: int = 24,
    powers: Sequence[int] = (2, 1, 3, 4),
    widths: Sequence[int] | None = None,
    offset: bool | None = None,
) -> Problem:
    """A random problem; the arguments narrow what is drawn (None: both, or for widths of keys and values any)."""
    p = draw(st.sampled_from([p for p in powers if p % 2 == 0 or not normalize]))
    normalize = (p % 2 == 0 and draw(st.booleans())) if normalize is None else normalize
    heads, (T, chunk_size) = draw(head_counts()), draw(_lengths(shortest, longest))
    B = draw(st.integers(1, batches))
    K = draw(st.integers(1, _WIDEST_KEY[p]) if widths is None else st.sampled_from(widths))
    V = draw(st.integers(1, 9) if widths is None else st.sampled_from(widths))
    dtype = draw(st.sampled_from(dtypes))
    scale = draw(st.just(1 / math.sqrt(K)) | st.sampled_from([1.0, 0.3, -0.7]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    accumulation = torch.promote_types(dtype, torch.float32)

    def lay(x: Tensor) -> Tensor:
        return lay_out(x, draw(st.sampled_from(LAYOUTS)))

    def normal(*shape: int) -> Tensor:
        return lay(torch.randn(*shape, generator=random).to(dtype))

    q, k, v = normal(B, T, heads.query, K), normal(B, T, heads.key, K), normal(B, T, heads.value, V)
    zero_keys = draw(st.sampled_from([0.0, 0.0, 0.3, 0.3, 1.0]))
    if zero_keys:
        k = lay(torch.where(torch.rand(B, T, heads.key, 1, generator=random) < zero_keys, 0, k))
    log_g = make_gates(draw(st.sampled_from(gates)), (B, T, heads.value), random)
    log_g = None if log_g is None else lay_out(log_g.to(accumulation), draw(st.sampled_from(GATE_LAYOUTS)))
    offsets = None
    if draw(st.booleans()) if offset is None else offset:
        size = draw(st.sampled_from([1.0, 0.1, 0.0]))
        offsets = (size * (1 + torch.randn(heads.query, generator=random))).to(accumulation)
    has_offset = offsets is not None
    S = z = None
    if draw(st.booleans()) if state is None else state:
        S, z = make_state(B, heads.state, K, V, p, draw(st.sampled_from([4, 1, 0])), random, offset=has_offset)
        S, z = lay(S.to(accumulation)), z.to(accumulation)
    used, D = draw(st.sets(st.sampled_from(["o", "S", "z"]), min_size=1)), state_size(K, p, offset=has_offset)
    dS = lay(torch.randn(B, heads.state, D, V, generator=random).to(accumulation)) if "S" in used else None
    dz = torch.randn(B, heads.state, D, generator=random).to(accumulation) if "z" in used else None
    do = normal(B, T, heads.output, V) if "o" in used else None
    return Problem(q, k, v, log_g, S, z, do, dS, dz, p, scale, normalize, chunk_size, offsets)
