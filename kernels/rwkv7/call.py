"""One call of RWKV-7's time mixing, whole; fields stand in the order in which the ops have them.

A schema can take None and not return it, so that an absent result is empty.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Incoming", "Mixed", "MixedGradients", "Options", "Saved", "Tokens"]


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

    use_fla: bool
    chunk_size: int  # 0 chooses


class Mixed(NamedTuple):
    """What the forward pass gives."""

    o: Tensor  # [B, T, H, N] in the dtype of v
    S: Tensor  # after the last token [B, H, N, N], in the accumulation dtype
    states: Tensor  # that the backward pass starts from [n, B, H, N, N]


class Incoming(NamedTuple):
    """Gradients of o and of the last state."""

    do: Tensor
    dS: Tensor | None  # noqa: N815 - the state's gradient


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    states: Tensor
    has_state: bool  # whether one was given


class MixedGradients(NamedTuple):
    """Gradients of tokens and of the incoming state, empty where there was none."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    S: Tensor
