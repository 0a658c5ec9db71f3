# mypy: disable-error-code="no-untyped-def, assignment"
"""One query against a cache on a GPU, cut along the tokens: programs read a part each, and a second kernel joins them.

Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.cuda import device_of

__all__ = ["attend_in_splits", "join_kernel", "split_kernel"]

PROGRAMS = 1024  # several a multiprocessor, so that some read while others compute
MOST_SPLITS = 128
TILE_BYTES = 8192  # of keys in one trip, and of values
LEAST_ROWS = 16  # of a matrix product


@triton.jit
def split_kernel(
    q, keys, values, position, start, partial, sums, L, scale, q_batch, q_head, HEADS, SPLITS,
    K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of the tokens of one key/value head, for the GROUP queries that share it.

    Writes what they read, `partial [B, Hk, GROUP, SPLITS, K]`, divided by nothing yet, and `sums [2, B, Hk, GROUP,
    SPLITS]`: the largest score, in the exponent of two, and the sum of weights beside it.
    """
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), pair % HEADS
    count = tl.load(position + batch)  # int64 from here on: a cache may have more than 2^31 numbers
    first_seen = tl.load(start + batch)
    last = count - 1
    last_slot = last % L
    used = tl.minimum(count, L)  # slots beyond have never been written
    part = tl.cdiv(tl.cdiv(used, BLOCK), SPLITS) * BLOCK
    low = split * part
    high = tl.minimum(low + part, used)

    member, channel = tl.arange(0, ROWS), tl.arange(0, K)
    query = tl.load(
        q + batch * q_batch + (head * GROUP + member[:, None]) * q_head + channel[None, :], member[:, None] < GROUP, 0
    )
    offset = batch * L * HEADS * K + head * K
    most = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    read = tl.zeros((ROWS, K), tl.float32)
    for block in range(low, high, BLOCK):
        slot = block + tl.arange(0, BLOCK)
        exists = slot < high
        at = offset + slot[:, None] * (HEADS * K) + channel[None, :]
        key = tl.load(keys + at, exists[:, None], 0).to(query.dtype)
        value = tl.load(values + at, exists[:, None], 0).to(query.dtype)
        age = last_slot - slot
        held = last - tl.where(age < 0, age + L, age)  # the position of the token in the slot
        seen = exists & (held >= first_seen)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen yet: every weight is zero
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(most - base)
        total = total * shrink + tl.sum(weights, 1)
        read = read * shrink[:, None] + tl.dot(weights.to(query.dtype), value, input_precision="ieee")
        most = higher

    out = ((pair.to(tl.int64) * GROUP + member) * SPLITS) + split
    mine = member < GROUP
    tl.store(partial + out[:, None] * K + channel[None, :], read, mine[:, None])
    tl.store(sums + out, most, mine)
    tl.store(sums + tl.num_programs(0).to(tl.int64) * GROUP * SPLITS + out, total, mine)


@triton.jit
def join_kernel(partial, sums, o, SPLITS, K: tl.constexpr, BLOCK: tl.constexpr):
    """o `[B Hq, K]` from `partial [B Hq, SPLITS, K]` and `sums [2, B Hq, SPLITS]`, always in the same order."""
    output = tl.program_id(0).to(tl.int64)
    split, channel = tl.arange(0, BLOCK), tl.arange(0, K)
    exists = split < SPLITS
    most = tl.load(sums + output * SPLITS + split, exists, -float("inf"))
    total = tl.load(sums + (tl.num_programs(0).to(tl.int64) + output) * SPLITS + split, exists, 0)
    weight = tl.exp2(most - tl.max(most, 0))
    read = tl.load(partial + (output * SPLITS + split[:, None]) * K + channel[None, :], exists[:, None], 0)
    result = tl.sum(read * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(o + output * K + channel, result.to(o.dtype.element_ty))


def attend_in_splits(
    q: Tensor, keys: Tensor, values: Tensor, position: Tensor, start: Tensor, *, splits: int | None = None
) -> Tensor:
    """See `zoo.kernels.cache_attention.cache_attention`; splits: parts, None for as many as suit the sizes."""
    B, L, heads, K = keys.shape
    o = q.new_empty(q.shape)
    if B == 0:
        return o
    group = q.shape[1] // heads
    q = q if q.stride(-1) == 1 else q.contiguous()
    keys, values = keys.contiguous(), values.contiguous()
    rows = max(LEAST_ROWS, triton.next_power_of_2(group))
    block = min(128, max(16, TILE_BYTES // (K * keys.element_size())))
    if splits is None:
        splits = min(triton.cdiv(PROGRAMS, B * heads), triton.cdiv(L, block), MOST_SPLITS)
    partial = torch.empty(B * q.shape[1] * splits * K, device=q.device, dtype=torch.float32)
    sums = torch.empty(2 * B * q.shape[1] * splits, device=q.device, dtype=torch.float32)
    with device_of(q):
        split_kernel[(B * heads, splits)](
            q, keys, values, position, start, partial, sums, L, math.log2(math.e) / math.sqrt(K),
            q.stride(0), q.stride(1), heads, splits, K=K, GROUP=group, ROWS=rows, BLOCK=block,
            num_warps=4, num_stages=3,
        )  # fmt: skip
        join_kernel[(B * q.shape[1],)](partial, sums, o, splits, K=K, BLOCK=triton.next_power_of_2(splits), num_warps=4)
    return o
