"""One call of RWKV-7's time mixing, whole; fields stand in the order in which the ops have them.

A schema can take None and not return it, so that an absent result is empty.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Incoming", "Kept", "Mixed", "MixedGradients", "Options", "Saved", "Tokens", "nothing_kept"]


class Tokens(NamedTuple):
    """What is mixed, or its gradients: all `[B, T, H, N]` and of one dtype, but for log_w, which is float32."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor


class Options(NamedTuple):
    """How it is computed."""

    use_triton: bool
    chunk_size: int  # 0 chooses
    base: int = 1  # tokens whose decays are bounded enough to divide by them; a power of two
    save: bool = True  # for a backward pass


class Kept(NamedTuple):
    """What Triton's kernels keep for the backward pass beside states, in the dtype of their products; else empty.

    Names are as in `triton/prepare.py`; n are chunks of all sequences, of C tokens.
    """

    removed: Tensor  # u [B, T, H, N]
    inverses: Tensor  # [n, H, C, C]
    scores: Tensor  # [n, H, 3, C, C]
    removes: Tensor  # [n, H, C, N], as the next two
    keeps: Tensor
    receives: Tensor
    wholes: Tensor  # [n, H, N], float32


def nothing_kept(like: Tensor) -> Kept:
    """Empty tensors, each of its own."""
    return Kept(*(like.new_empty(0) for _ in Kept._fields))


class Mixed(NamedTuple):
    """What the forward pass gives."""

    o: Tensor  # [B, T, H, N] in the dtype of v
    S: Tensor  # after the last token [B, H, N, N], in the accumulation dtype
    states: Tensor  # that the backward pass starts from: of segments [n, B, H, N, N], or before chunks [n, H, N, N]
    # `Kept`:
    removed: Tensor
    inverses: Tensor
    scores: Tensor
    removes: Tensor
    keeps: Tensor
    receives: Tensor
    wholes: Tensor


class Incoming(NamedTuple):
    """Gradients of o and of the last state."""

    do: Tensor
    dS: Tensor | None  # noqa: N815 - the state's gradient


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    S: Tensor | None  # that was given
    states: Tensor
    # `Kept`:
    removed: Tensor
    inverses: Tensor
    scores: Tensor
    removes: Tensor
    keeps: Tensor
    receives: Tensor
    wholes: Tensor

    @property
    def kept(self) -> Kept:
        return Kept(*self[2:])


class MixedGradients(NamedTuple):
    """Gradients of tokens and of the incoming state, empty where there was none."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    S: Tensor
