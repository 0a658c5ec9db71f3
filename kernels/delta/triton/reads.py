"""Gradients around what tokens read of a power state: what stands between the passes of `powers.backward`."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels.delta.call import Inputs
from zoo.kernels.launch import launcher
from zoo.kernels.power.triton.prepare import room

__all__ = ["ReadGradients", "add_key_gradients", "read_gradients", "scaled", "turned"]

BLOCK = 32  # rows of a program, each a token's and head's


class ReadGradients(NamedTuple):
    """What follows from the errors' gradient."""

    dv: Tensor  # [B, T, Hv, V]
    dreads: Tensor  # of what each token's state, with its gate yet to come, holds for the next one [B, T, Hv, V]
    dbeta: Tensor  # float32 [B, T, Hv]
    dlog_g: Tensor  # the part of a gate that is its own read's factor, float32 [B, T, Hv]


@triton.jit(do_not_specialize=["rows", "T", "HEADS"])
def read_gradients_kernel(
    turned, errors, v, beta, log_g, starts, dv, dreads, dbeta, dlog_g, rows, T, HEADS,
    V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """From errors `[B T, Hv, V]`, float32, and their gradients turned around in time; starts `[B T]` are 1 where a
    sequence begins. Each token's read is the token's before it to give.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    token, head = (row // HEADS).to(tl.int64), row % HEADS
    mirrored = (token // T + 1) * T - 1 - token % T
    value = tl.arange(0, V)[None, :]
    here = row.to(tl.int64)[:, None] * V + value
    mask = exists[:, None]
    d = tl.load(turned + (mirrored * HEADS + head)[:, None] * V + value, mask, 0)
    error = tl.load(errors + here, mask, 0)
    rate = tl.load(beta + row, exists, 0).to(tl.float32)
    tl.store(dbeta + row, tl.sum(error * d, 1), exists)
    d *= rate[:, None]
    tl.store(dv + here, d.to(dv.dtype.element_ty), mask)
    read = tl.load(v + here, mask, 0).to(tl.float32) - error
    left = 1.0
    if GATED:
        left = tl.exp(tl.load(log_g + row, exists, 0).to(tl.float32))[:, None]
        tl.store(dlog_g + row, -tl.sum(d * read, 1), exists)
    follows = exists & (tl.load(starts + token, exists, 1) == 0)
    given = (-d * left).to(dreads.dtype.element_ty)
    tl.store(dreads + here - HEADS * V, given, follows[:, None])
    # The last tokens of sequences are read by none.
    ends = exists & (tl.load(starts + token + 1, exists, 0) == 1)
    tl.store(dreads + here, tl.zeros_like(given), ends[:, None])


def read_gradients(inputs: Inputs, errors: Tensor, turned: Tensor, starts: Tensor) -> ReadGradients:
    """The gradients of v and beta, and what goes on from reads.

    Args:
        inputs: with rates.
        errors: `[B, T, Hv, V]`, float32.
        turned: their gradients, backwards in time.
        starts: int8 `[B T + 1]`, 1 where a sequence begins, and at the end.
    """
    v, log_g = inputs.v, inputs.log_g
    B, T, H, V = v.shape
    found = ReadGradients(
        room(*v.shape, like=v, dtype=v.dtype), room(*v.shape, like=v, dtype=v.dtype),
        room(B, T, H, like=v, dtype=torch.float32), room(B, T, H, like=v, dtype=torch.float32),
    )  # fmt: skip
    assert inputs.beta is not None
    launcher(read_gradients_kernel)[(-(-B * T * H // BLOCK),)](
        turned, errors, v, inputs.beta, errors if log_g is None else log_g, starts, *found, B * T * H, T, H,
        V=V, BLOCK=BLOCK, GATED=log_g is not None,
    )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["rows", "T", "HEADS"])
def key_gradients_kernel(
    written, read, asked, dk, rows, T, HEADS, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dk `[B T, Hk, K]`, of what keys wrote and of what they asked, the latter one token before."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists, first = row < rows, row // HEADS % T == 0
    here = row.to(tl.int64)[:, None] * K + tl.arange(0, K)[None, :]
    total = tl.load(written + here, exists[:, None], 0).to(tl.float32)
    total += tl.load(read + here, exists[:, None], 0).to(tl.float32)
    total += tl.load(asked + here - HEADS * K, (exists & ~first)[:, None], 0).to(tl.float32)
    tl.store(dk + here, total.to(dk.dtype.element_ty), exists[:, None])


def add_key_gradients(written: Tensor, read: Tensor, asked: Tensor) -> Tensor:
    """Add up gradients of keys `[B, T, Hk, K]`: of what outputs and the next tokens read of what they wrote, and of
    what they ask, which `asked` has one token before: nothing at the end of a sequence."""
    B, T, H, K = written.shape
    dk = room(B, T, H, K, like=written, dtype=written.dtype)
    launcher(key_gradients_kernel)[(-(-B * T * H // BLOCK),)](
        written, read, asked, dk, B * T * H, T, H, K=K, BLOCK=BLOCK,
    )  # fmt: skip
    return dk


@triton.jit(do_not_specialize=["rows", "T", "HEADS"])
def copy_kernel(
    x, factors, y, rows, T, HEADS, N: tl.constexpr, BLOCK: tl.constexpr, SCALES: tl.constexpr, TURNS: tl.constexpr
):
    """y `[B T, HEADS, N]`: x, times factors `[B T, HEADS]` if it SCALES, backwards in time if it TURNS."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    source = row.to(tl.int64)
    if TURNS:
        token = source // HEADS
        source = ((token // T + 1) * T - 1 - token % T) * HEADS + source % HEADS
    column = tl.arange(0, N)[None, :]
    found = tl.load(x + source[:, None] * N + column, exists[:, None], 0)
    if SCALES:
        found = found.to(tl.float32) * tl.load(factors + row, exists, 0).to(tl.float32)[:, None]
    tl.store(y + row.to(tl.int64)[:, None] * N + column, found.to(y.dtype.element_ty), exists[:, None])


def _copy(x: Tensor, factors: Tensor, dtype: torch.dtype, **kind: bool) -> Tensor:
    B, T, H, N = x.shape
    y = room(B, T, H, N, like=x, dtype=dtype)
    launcher(copy_kernel)[(-(-B * T * H // BLOCK),)](x, factors, y, B * T * H, T, H, N=N, BLOCK=BLOCK, **kind)
    return y


def turned(x: Tensor) -> Tensor:
    """`x [B, T, H, N]` backwards in time."""
    return _copy(x.contiguous(), x, x.dtype, SCALES=False, TURNS=True)


def scaled(x: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """`x [B, T, H, N]` times factors `[B, T, H]`, in another dtype."""
    return _copy(x.contiguous(), factors.contiguous(), dtype, SCALES=True, TURNS=False)
