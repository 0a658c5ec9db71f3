"""Block sizes: a table by dtype, K, V and p, measured once and looked up ever after; there is no search at start-up."""

from typing import NamedTuple

import torch
import triton

__all__ = ["Config", "Launch", "config"]


class Launch(NamedTuple):
    """Tokens of a program, tokens it meets at a time, warps, and stages of the pipeline."""

    block: int
    other: int
    warps: int
    stages: int


class Config(NamedTuple):
    """All that a call needs to know before it launches."""

    chunk: int  # C, tokens a chunk
    alone: int  # up to so many tokens one chunk takes all
    inner: int  # channels of a tile
    outer: int  # outer monomials a program of the sums takes, 1, 2 or 4
    sums: Launch
    output: Launch
    query_gradient: Launch
    key_gradient: Launch
    value_gradient: Launch

    @property
    def launches(self) -> tuple[Launch, ...]:
        return self.sums, self.output, self.query_gradient, self.key_gradient, self.value_gradient


def config(dtype: torch.dtype, K: int, V: int, p: int, *, hopper: bool) -> Config:
    """The block sizes for inputs of this dtype and these widths; hopper: for its own kernels."""
    inner = 16 if hopper else K if p <= 2 else max(16, K // 2)
    if triton.knobs.runtime.interpret:
        launch = Launch(16, 16, 4, 1)
        return Config(32, 64, inner, 2, launch, launch, launch, launch, launch)
    wide = max(K, V) > 64
    if dtype == torch.bfloat16:
        # A block of as many tokens as threads keeps a token's scalar with the thread that needs it.
        state = Launch(64, 32, 4, 3) if wide else Launch(128, 32, 4, 3)
        chunk = 256 if p == 1 else 1024
        if hopper:  # what the states give has kernels of its own
            return Config(
                chunk=chunk, alone=2 * chunk, inner=inner, outer=0, sums=Launch(64, 0, 4, 3),
                output=Launch(128, 64, 8, 3) if wide else Launch(128, 64, 4, 3),
                query_gradient=Launch(64, 32, 4, 3), key_gradient=Launch(64, 32, 4, 3), value_gradient=state,
            )  # fmt: skip
        return Config(
            chunk=chunk, alone=2 * chunk, inner=inner, outer=1 if p == 1 or wide else 4, sums=Launch(64, 0, 4, 3),
            output=Launch(128, 64, 8, 3) if wide else state, query_gradient=state, key_gradient=state,
            value_gradient=state,
        )  # fmt: skip
    chunk = 128 if p == 1 else 512
    launch = Launch(32, 32, 4, 1) if wide else Launch(64, 32, 4, 2)
    return Config(chunk, 2 * chunk, inner, 1, launch, launch, launch, launch, launch)
