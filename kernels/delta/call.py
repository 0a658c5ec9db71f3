"""One call of the delta rule, whole: what it takes, gives and keeps.

Fields stand in the order in which the ops have them, and nothing else knows that order. A schema can take None and not
return it, so that absent results are empty: of one dimension, which no result that is there has.

Shapes: `B` batch, `T` tokens; `Hq` and `Hk` query and key heads, each a divisor of the `Hv` value heads, of which each
has a state, a gate, a rate of writing and an output; `K` key dim, `V` value dim, `D` state rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.precision import accumulation_dtype

__all__ = ["Gradients", "Incoming", "Inputs", "Options", "Outputs", "Saved", "Step"]


class Inputs(NamedTuple):
    """What a call takes; q, k and v of one dtype."""

    q: Tensor  # [B, T, Hq, K]
    k: Tensor  # [B, T, Hk, K]
    v: Tensor  # [B, T, Hv, V]
    log_g: Tensor | None = None  # [B, T, Hv], or [B, T, Hv, K] where each key channel has a gate; float32
    beta: Tensor | None = None  # [B, T, Hv]; None: nothing is corrected
    S: Tensor | None = None  # [rows, Hv, D, V], packed, in the accumulation dtype; rows: B, or packed sequences
    cu_seqlens: Tensor | None = None  # int32 [rows + 1]

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype of sums and states."""
        return accumulation_dtype(self.q.dtype)

    @property
    def rows(self) -> int:
        """How many states there are for each head."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def gates_channels(self) -> bool:
        """Whether each key channel has a gate of its own."""
        return self.log_g is not None and self.log_g.dim() == 4

    def sequences(self) -> Iterator[tuple[int, slice]]:
        """Each packed sequence's row of the state, and its tokens."""
        assert self.cu_seqlens is not None
        ends = self.cu_seqlens.tolist()
        return ((i, slice(ends[i], ends[i + 1])) for i in range(len(ends) - 1))


class Options(NamedTuple):
    """What is computed, how, and what comes back beside the output."""

    p: int
    scale: float
    chunk_size: int = 0  # 0 chooses
    return_state: bool = False
    save_errors: bool = False  # or what stands for them, for the backward pass
    use_triton: bool = False


class Outputs(NamedTuple):
    """What the forward pass gives; empty what is not asked for."""

    o: Tensor  # [B, T, Hv, V]
    S: Tensor  # as in `Inputs`, after the last token
    errors: Tensor  # of what the state held for each key [B, T, Hv, V] in the accumulation dtype, if there is a beta
    # Triton's kernels save instead:
    starts: Tensor  # states before groups of chunks, float32 [groups or more, Hv, K, V]

    @property
    def saved(self) -> "Saved":
        return Saved(self.errors, self.starts)


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass: the fields of `Outputs`."""

    errors: Tensor
    starts: Tensor


class Incoming(NamedTuple):
    """Gradients of results: of o, and of the state after the last token."""

    do: Tensor
    dS: Tensor | None  # noqa: N815 - the state's gradient


class Gradients(NamedTuple):
    """Gradients of inputs, empty for absent ones."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor
    beta: Tensor
    S: Tensor


class Step(NamedTuple):
    """One decoded token's call; S is updated in place."""

    q: Tensor  # [B, Hq, K]
    k: Tensor  # [B, Hk, K]
    v: Tensor  # [B, Hv, V]
    log_g: Tensor | None  # [B, Hv] or [B, Hv, K], float32
    beta: Tensor | None  # [B, Hv]
    S: Tensor  # [B, Hv, D, V], packed
    p: int
    scale: float
