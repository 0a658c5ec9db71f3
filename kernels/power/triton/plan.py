"""What one call's launches follow from: sizes, chunks, layout, block sizes and backend. No tensors, no launches."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels.power.call import Inputs, Options
from zoo.kernels.power.heads import Heads
from zoo.kernels.power.supported import supports_hopper
from zoo.kernels.power.triton.configs import BlockSizes, block_sizes
from zoo.kernels.power.triton.layout import Layout, make_layout

__all__ = ["Plan", "make_plan"]

MOST_SHARED = 64  # heads whose sums a program holds in registers


class Plan(NamedTuple):
    """Tokens are cut into chunks of C, each with a slot; no chunk spans two sequences.

    In a batch slot `b N + n` is chunk n of row b. Packed sequences take `ceil(T / C)` slots and one more each, a bound
    that needs no word from the device; those left over hold no tokens.

    Products are of `dtype`, sums and states carried in float32. float16 is computed in float32 with TensorFloat32
    products: as many digits, and the range that states need.
    """

    heads: Heads
    batch: int  # B
    tokens: int  # T
    K: int
    V: int
    p: int
    scale: float  # of weights: the call's to the power of p
    score_scale: float  # the call's
    normalize: bool
    gated: bool
    offset: bool
    packed: bool
    dtype: torch.dtype
    precision: str  # of products, as Triton names it
    exact_gates: bool  # gates' sums have low parts as well
    hopper: bool  # whether Hopper's own kernels do it
    blocks: BlockSizes
    layout: Layout
    C: int
    slots: int
    sequences: int  # rows of the state

    @property
    def single(self) -> bool:
        """Whether no sequence has more than one chunk."""
        return not self.packed and self.slots == self.batch

    @property
    def fused(self) -> bool:
        """Whether kernels take both what states give and what a chunk gives: not where they lack shared memory."""
        return self.hopper and self.K == self.V == 64

    @property
    def shares_pairs(self) -> bool:
        """Whether all heads of a query share its key, so that their gradients are added up where they are made."""
        heads, shared = self.heads, self.heads.output // self.heads.query
        alike = heads.query == heads.key and 1 < shared <= MOST_SHARED
        return alike and heads.state == heads.output and self.p == 1 and not (self.normalize or self.offset)

    def gradient_heads(self, *, has_final: bool) -> tuple[int, int]:
        """Heads that gradients of queries and keys are made for; has_final: with one of the state after the last token.

        The normaliser of that gradient has a part in the keys', which is made for each head.
        """
        heads = self.heads
        return (
            heads.query if self.shares_pairs else heads.output,
            heads.key if self.shares_pairs and not has_final else heads.state,
        )

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Of one state a chunk: S in tiles, and behind it z."""
        return self.slots, self.heads.state, self.layout.rows * (self.V + 1)

    @property
    def gates_shape(self) -> tuple[int, int, int]:
        """Of one number a token and state, tokens last."""
        return self.slots, self.heads.state, self.C

    def has_states(self, given: Tensor | None) -> bool:
        """Whether chunks have states beside them: given from outside, or because a sequence has several chunks."""
        return given is not None or not self.single

    def programs(self, block: int) -> int:
        """Blocks of tokens in the longest chunk."""
        return -(-min(self.C, self.tokens) // block)


def make_plan(inputs: Inputs, options: Options) -> Plan:
    """The plan of both passes of a call."""
    q, k, v, log_g, cu_seqlens = *inputs[:4], inputs.cu_seqlens
    K, V, p = int(k.shape[-1]), int(v.shape[-1]), options.p  # widths are constants, also where shapes are symbols
    hopper = supports_hopper(q, K, V, p) and inputs.offset is None
    blocks = block_sizes(q, K, V, p, hopper=hopper)
    B, T = q.shape[:2]
    sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    C, slots = _cut(B, T, sequences, blocks, options.chunk_size)
    return Plan(
        heads=inputs.heads,
        batch=B,
        tokens=T,
        K=K,
        V=V,
        p=p,
        scale=options.scale**p,
        score_scale=options.scale,
        normalize=options.normalize,
        gated=log_g is not None,
        offset=inputs.offset is not None,
        packed=sequences is not None,
        dtype=torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32,
        precision=_precision(q.dtype),
        exact_gates=log_g is not None and q.dtype == torch.float32,
        hopper=hopper,
        blocks=blocks,
        layout=make_layout(K, p, blocks.inner, offset=inputs.offset is not None),
        C=C,
        slots=slots,
        sequences=B if sequences is None else sequences,
    )


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "ieee"
    # Under the interpreter it is the same path, but there are no tensor cores to round for.
    return "tf32x3" if triton.knobs.runtime.interpret else "tf32"


def _cut(B: int, T: int, sequences: int | None, blocks: BlockSizes, wanted: int) -> tuple[int, int]:
    """Tokens a chunk, as wanted or, for 0, as configured, in whole blocks of tokens; and slots."""
    block = max(size for launch in blocks.launches for size in (launch.block, launch.other))
    alone = wanted == 0 and sequences is None and T <= blocks.alone  # a short sequence is one chunk
    C = -(-(T if alone else wanted or blocks.chunk) // block) * block
    if sequences is not None:
        return C, -(-T // C) + sequences
    return C, B if alone else B * -(-T // C)
