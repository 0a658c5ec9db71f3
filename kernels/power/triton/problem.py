"""What every kernel launch of one call shares: sizes, chunks, layout, block sizes and prepared inputs."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.power.expansion import coefficients
from zoo.kernels.power.heads import Heads, spread_heads
from zoo.kernels.power.triton.chunks import Chunks, cut
from zoo.kernels.power.triton.configs import Config, config
from zoo.kernels.power.triton.layout import Layout, layout

__all__ = ["LOWEST_GATE", "Columns", "Problem"]

# exp(-128) is zero in float32, so this stands for -inf; sums of it lose as few digits as may be.
LOWEST_GATE = -128.0
_LOG2_E = 1.4426950408889634
_PRECISIONS = {torch.bfloat16: "tf32", torch.float16: "tf32", torch.float32: "ieee"}


class Columns(NamedTuple):
    """Queries or keys with tokens last."""

    plain: Tensor  # [slots, H, K, C]
    decayed: Tensor  # [slots, Hs or Ho, K, C], times what is left of each token, zero beyond a chunk's end


class Problem:
    """The inputs of one call, laid out for the kernels. Products are of `dtype`, sums and states carried in float32.

    float16 is computed in float32 with TensorFloat32 products, which have the same digits and the range that states need.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, cu_seqlens: Tensor | None, *,
        p: int, scale: float, chunk_size: int,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = q.contiguous(), k.contiguous(), v.contiguous()
        self.log_g = None if log_g is None else log_g.float().contiguous()
        self.p, self.scale = p, scale**p
        self.heads = Heads(q.shape[2], k.shape[2], v.shape[2])
        self.K, self.V = k.shape[-1], v.shape[-1]
        self.dtype = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
        self.precision = _PRECISIONS[q.dtype]
        self.exact_gates = log_g is not None and q.dtype == torch.float32
        self.config: Config = config(q.dtype, self.K, self.V, p)
        B, T = q.shape[:2]
        size = chunk_size or self.config.chunk
        longest = max(
            *(launch.block for launch in self.config.launches), *(launch.other for launch in self.config.launches)
        )
        if not chunk_size and cu_seqlens is None and T <= self.config.alone:
            size = T
        size = -(-size // longest) * longest
        self.chunks: Chunks = cut(B, T, size, cu_seqlens)
        self.layout: Layout = layout(self.K, p, self.config.inner, q.device)
        if log_g is None:
            self.gates = self.gates_low = q.new_empty(0, dtype=torch.float32)
        else:
            total = self.chunks.gates(self.log_g, LOWEST_GATE).cumsum(-1) * _LOG2_E
            self.total = total.repeat_interleave(self.heads.state // self.heads.value, 1)
            self.gates = self.total.float()
            self.gates_low = (self.total - self.gates).float() if self.exact_gates else self.gates

    @property
    def gated(self) -> bool:
        return self.log_g is not None

    @cached_property
    def keys(self) -> Tensor:
        """Keys with tokens last `[slots, Hk, K, C]`."""
        return self.chunks.columns(self.k, self.dtype)

    def keys_to_end(self) -> Columns:
        """Keys, and what is left of them at their chunk's end."""
        if self.log_g is None:
            left = self.chunks.exists(self.q.device)
        else:
            left = torch.where(self.chunks.exists(self.q.device), (self.total[..., -1:] - self.total).exp2().float(), 0)
        return Columns(self.keys, self._decayed(self.keys, left, self.heads.state))

    def queries_from_start(self) -> Columns:
        """Queries, and the same with what is left at them of their chunk's start and with the scale to the power p."""
        queries, exists = self.chunks.columns(self.q, self.dtype), self.chunks.exists(self.q.device)
        left = torch.where(exists, self.scale if self.log_g is None else self.gates.exp2() * self.scale, 0)
        return Columns(queries, self._decayed(queries, left, self.heads.output))

    def _decayed(self, columns: Tensor, left: Tensor, heads: int) -> Tensor:
        """Columns `[slots, H, K, C]` times what is left `[slots or 1, Hs or 1, C]`, for each of `heads` heads."""
        left = left.repeat_interleave(heads // left.shape[1], 1) if left.shape[1] > 1 else left
        return (spread_heads(columns, heads, 1) * left[:, :, None]).to(self.dtype).contiguous()

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Packed chunks' bounds and sequences' slots; anything where there are none."""
        if self.chunks.bounds is None or self.chunks.sequence_slots is None:
            return self.layout.channels, self.layout.channels
        return self.chunks.bounds, self.chunks.sequence_slots

    @property
    def packed(self) -> bool:
        return self.chunks.bounds is not None

    def blocks(self, block: int) -> int:
        """Blocks of tokens in the longest chunk."""
        return -(-min(self.chunks.size, self.chunks.tokens) // block)

    def groups(self) -> Tensor:
        """What each program of the sums takes: first outer monomial, inner block, first row, where they end."""
        return _groups(self.layout.prefixes, self.layout.inner, self.config.outer, self.q.device)

    def states(self) -> Tensor:
        """Room for one state a chunk."""
        return self.q.new_empty(self.chunks.slots, self.heads.state, self.layout.rows * (self.V + 1), dtype=self.dtype)

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

    def inner_product(self, state: Tensor, gradient: Tensor) -> Tensor:
        """`<dS, S> + <dz, z>` `[rows, Hs]` float64 of a tiled state and its gradient."""
        (S, z), (dS, dz) = self.to_packed(state), self.to_packed(gradient, gradient=True)
        return (S * dS).sum((-2, -1), dtype=torch.float64) + (z * dz).sum(-1, dtype=torch.float64)


def _groups(prefixes: tuple[int, ...], inner: int, outer: int, device: torch.device) -> Tensor:
    rows, groups = 0, []
    for block, prefix in enumerate(prefixes):
        groups += [(first, block, rows + first * inner, prefix) for first in range(0, prefix, outer)]
        rows += prefix * inner
    return torch.tensor(groups, dtype=torch.int32, device=device)
