"""What every kernel launch of one call shares: sizes, chunks, layout, block sizes and prepared inputs."""

from functools import cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.power.expansion import coefficients
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.triton.chunks import Chunks, cut
from zoo.kernels.power.triton.columns import columns_kernel
from zoo.kernels.power.triton.configs import Config, config
from zoo.kernels.power.triton.gate_sums import gate_sums_kernel
from zoo.kernels.power.triton.hopper.launches import fuses, gradients_from_states, outputs_from_states, supports_hopper
from zoo.kernels.power.triton.launch import launcher
from zoo.kernels.power.triton.layout import Layout
from zoo.kernels.power.triton.output_gradient import output_gradient_kernel

__all__ = ["LOWEST_GATE", "Columns", "OutputGradient", "Problem", "product_dtype"]

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_GATE = -128.0
COLUMNS_BLOCK = 64
GATES_BLOCK = 256
_PRECISIONS = {torch.bfloat16: "tf32", torch.float16: "tf32", torch.float32: "ieee"}


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the operands of products are, for inputs of this dtype."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


class Columns(NamedTuple):
    """Queries or keys with tokens last."""

    plain: Tensor  # [slots, H, K, C]
    decayed: Tensor  # [slots, Hs or Ho, K, C], times what is left of each token, zero beyond a chunk's end; or float32


class OutputGradient(NamedTuple):
    """The gradients of numerator and denominator are `do factors` and `-delta factors`; they stay in these factors.

    So do meets its first product unrounded, and terms that cancel do so in float32.
    """

    do: Tensor  # [B, T, Ho, V], in the products' dtype
    delta: Tensor | None  # do . o, tokens last [slots, Ho, C], float32, if normalised
    factors: Tensor  # scale^p, over the denominator if normalised, zero where it is steep or there is no token
    queries: Columns | None  # queries, and the same times factors and what is left at them of their chunk's start


class Problem:
    """The inputs of one call, laid out for the kernels. Products are of `dtype`, sums and states carried in float32.

    float16 is computed in float32 with TensorFloat32 products: as many digits, and the range that states need.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, cu_seqlens: Tensor | None, *,
        p: int, scale: float, chunk_size: int, gates: Tensor | None = None,
    ) -> None:  # fmt: skip
        """gates: summed, as an earlier call left them, where keys need not be summed up once more."""
        self.q, self.k, self.v = q.contiguous(), k.contiguous(), v.contiguous()
        self.log_g = None if log_g is None else log_g.float().contiguous()
        self.p, self.scale = p, scale**p
        self.heads = Heads(q.shape[2], k.shape[2], v.shape[2])
        self.K, self.V = int(k.shape[-1]), int(v.shape[-1])  # widths are constants, also where shapes are symbols
        self.dtype = product_dtype(q.dtype)
        self.precision = _PRECISIONS[q.dtype]
        if triton.knobs.runtime.interpret and self.precision == "tf32":
            self.precision = "tf32x3"  # the same path, but there are no tensor cores to round for
        self.exact_gates = log_g is not None and q.dtype == torch.float32
        self.hopper = supports_hopper(q, self.K, self.V, p)
        self.config: Config = config(self.q, self.K, self.V, p, hopper=self.hopper)
        self.chunks: Chunks = cut(q, self.config, chunk_size, cu_seqlens)
        self.layout = Layout(self.K, p, self.config.inner, self.q)
        if self.log_g is None:
            self.gates = self.gates_low = self.nothing
        elif gates is not None:
            self.gates, self.gates_low = gates, self.nothing
        else:
            self.gates, self.gates_low, self.left = self._gate_sums(self.log_g)

    @property
    def fused(self) -> bool:
        """Whether kernels take both what states give and what a chunk gives: see `hopper.passes`."""
        return self.hopper and fuses(self.K, self.V)

    @cached_property
    def nothing(self) -> Tensor:
        """Stands for an absent tensor, read or written.

        No other tensor does: one that a kernel writes to the compiler copies for each of its names, and keeps the last
        one's copy; one that it does not even read it may take for written to, and copy.
        """
        return self.q.new_empty(0, dtype=torch.float32)

    def or_nothing(self, x: Tensor | None) -> Tensor:
        """What a kernel gets for a tensor that may be absent."""
        return self.nothing if x is None else x

    @property
    def gated(self) -> bool:
        return self.log_g is not None

    @cached_property
    def keys(self) -> Tensor:
        """Keys with tokens last `[slots, Hk, K, C]`."""
        keys = self._room_for_columns(self.heads.key)
        self._launch_columns(keys, None, None)
        return keys

    @cached_property
    def queries(self) -> Tensor:
        """Queries with tokens last `[slots, Hq, K, C]`; anything where none scales a tile."""
        return self.q

    def _gate_sums(self, log_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`gates`, `gates_low` and `left`, see `gate_sums_kernel`; `gates_low` only where gates are exact."""
        slots, C, heads = self.chunks.slots, self.chunks.size, self.heads
        gates, left = (self._room(slots, heads.state, C, dtype=torch.float32) for _ in range(2))
        gates_low = self._room(slots, heads.state, C, dtype=torch.float32) if self.exact_gates else self.nothing
        launcher(gate_sums_kernel)[(slots, heads.state)](
            log_g, gates, gates_low, left, self.tables[0], self.chunks.tokens, C, heads.value,
            heads.state // heads.value, BLOCK=GATES_BLOCK, LOWEST=LOWEST_GATE, EXACT=self.exact_gates,
            PACKED=self.packed,
        )  # fmt: skip
        return gates, gates_low, left

    def keys_to_end(self, *, exact: bool) -> Columns:
        """Keys, and what is left of them at their chunk's end; leaves keys and queries with tokens last.

        exact: for a state that is returned, so that its monomials are rounded once, and not with the decay before.
        """
        heads = self.heads
        dtype = torch.float32 if exact and self.p > 1 and not self.hopper else self.dtype
        self.keys, decayed = self._room_for_columns(heads.key), self._room_for_columns(heads.state, dtype)
        queries = None
        if self.p > 1:
            self.queries = queries = self._room_for_columns(heads.query)
        self._launch_columns(self.keys, decayed, queries)
        return Columns(self.keys, decayed)

    def _launch_columns(self, keys: Tensor, decayed: Tensor | None, queries: Tensor | None) -> None:
        """Fill keys, and, if there are any, keys decayed by what is left of them at their chunk's end, and queries."""
        chunks, heads = self.chunks, self.heads
        programs = heads.key + (0 if queries is None else heads.query)
        launcher(columns_kernel)[(triton.cdiv(chunks.size, COLUMNS_BLOCK), chunks.slots, programs)](
            self.k, self.q, self.left if self.gated and decayed is not None else self.nothing, keys,
            self.or_nothing(decayed), self.or_nothing(queries), self.tables[0],
            chunks.tokens, chunks.size, heads.key, heads.query, heads.state // heads.key,
            K=self.K, BLOCK=COLUMNS_BLOCK, DECAYED=decayed is not None, GATED=self.gated, PACKED=self.packed,
            PRECISION=self.precision,
        )  # fmt: skip

    def output_gradient(self, do: Tensor, o: Tensor, denominator: Tensor | None, *, decayed: bool) -> OutputGradient:
        """The output's gradient; leaves keys and queries with tokens last.

        decayed: with queries, where there are states.
        """
        chunks, heads = self.chunks, self.heads
        normalize = denominator is not None
        do = do.to(self.dtype).contiguous()
        factors = self._room(chunks.slots, heads.output, chunks.size, dtype=torch.float32)
        delta = self._room(*factors.shape, dtype=torch.float32) if normalize else None
        wants_keys = "keys" not in self.__dict__ and (decayed or not self.fused)
        wants_queries = "queries" not in self.__dict__ and decayed and self.p > 1
        if wants_keys:
            self.keys = self._room_for_columns(heads.key)
        if wants_queries:
            self.queries = self._room_for_columns(heads.query)
        weighted = self._room_for_columns(heads.output) if decayed else None
        programs = heads.query + (heads.key if wants_keys else 0)
        launcher(output_gradient_kernel)[(triton.cdiv(chunks.size, COLUMNS_BLOCK), chunks.slots, programs)](
            self.q, self.k, do, o if normalize else self.nothing, self.or_nothing(denominator), self.gates, factors,
            self.or_nothing(delta), self.queries if wants_queries else self.nothing, self.or_nothing(weighted),
            self.keys if wants_keys else self.nothing, self.tables[0], chunks.tokens, chunks.size, self.scale,
            heads.query, heads.key, heads.output // heads.query, heads.output // heads.state,
            K=self.K, V=self.V, BLOCK=COLUMNS_BLOCK, NORMALIZE=normalize, GATED=self.gated, PLAIN=wants_queries,
            DECAYED=decayed, PACKED=self.packed, PRECISION=self.precision,
        )  # fmt: skip
        columns = None if weighted is None else Columns(self.queries if self.p > 1 else weighted, weighted)
        return OutputGradient(do, delta, factors, columns)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Packed chunks' bounds and sequences' slots; empty where there are none."""
        return self.or_nothing(self.chunks.bounds), self.or_nothing(self.chunks.sequence_slots)

    @property
    def packed(self) -> bool:
        return self.chunks.bounds is not None

    def blocks(self, block: int) -> int:
        """Blocks of tokens in the longest chunk."""
        return -(-min(self.chunks.size, self.chunks.tokens) // block)

    def along(self) -> tuple[Tensor, Tensor]:
        """Room for products of queries and keys with their gradients `[2, slots, Ho or Hs, C]`, empty if not gated."""
        shapes = ((2, self.chunks.slots, count, self.chunks.size) for count in (self.heads.output, self.heads.state))
        q_along, k_along = (self.q.new_empty(x if self.gated else (0,), dtype=torch.float32) for x in shapes)
        return q_along, k_along

    def has_states(self, given: Tensor | None) -> bool:
        """Whether chunks have states beside them: given from outside, or because a sequence has several chunks."""
        return given is not None or not self.chunks.single

    def _room_for_columns(self, heads: int, dtype: torch.dtype | None = None) -> Tensor:
        return self._room(self.chunks.slots, heads, self.K, self.chunks.size, dtype=dtype or self.dtype)

    def states(self, dtype: torch.dtype) -> Tensor:
        """Room for one state a chunk."""
        return self._room(self.chunks.slots, self.heads.state, self.layout.rows * (self.V + 1), dtype=dtype)

    def _room(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory to write to.

        Not by `new_empty`: of two such calls, one in the forward and one in the backward pass, the compiler makes one,
        and keeps what nobody has written.
        """
        return torch.empty(shape, dtype=dtype, device=self.q.device)

    def outputs_from_states(self, x: Tensor, columns: Tensor, states: Tensor, heads: int, first: bool) -> Tensor | None:
        """What states give to tokens `[B, T, heads, V]`, where a kernel of its own does that; first: to all chunks."""
        if not self.hopper:
            return None
        return outputs_from_states(
            x, columns, states, self.tables[0], heads, self.V, self.layout.rows, first, self.packed
        )

    def gradients_from_states(
        self, y: Tensor, columns: Tensor, states: Tensor, heads: int, first: bool
    ) -> Tensor | None:
        """The gradient through states `[B, T, heads, K]`, without the factor p; as `outputs_from_states`."""
        if not self.hopper:
            return None
        return gradients_from_states(y, columns, states, self.tables[0], heads, self.layout.rows, first, self.packed)

    def from_packed(self, S: Tensor, z: Tensor, *, gradient: bool = False) -> Tensor:
        """A packed state, or its gradient, in the tiled layout `[rows, Hs, rows (V + 1)]`, float32."""
        if gradient:
            c = coefficients(self.K, self.p, torch.float32, S.device)
            S, z = S / c[:, None], z / c
        S, z = S.float()[:, :, self.layout.packed], z.float()[:, :, self.layout.packed]
        return torch.cat((S.flatten(2), z), 2).contiguous()

    def to_packed(self, state: Tensor, *, gradient: bool = False) -> tuple[Tensor, Tensor]:
        """The inverse of `from_packed`."""
        split = self.layout.rows * self.V
        S = state[:, :, :split].unflatten(2, (-1, self.V))[:, :, self.layout.unpacked]
        z = state[:, :, split:][:, :, self.layout.unpacked]
        if gradient:
            c = coefficients(self.K, self.p, torch.float32, S.device)
            S, z = S * c[:, None], z * c
        return S, z
