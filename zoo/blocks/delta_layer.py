"""A layer of the delta rule: what is held for a key is replaced by its new value, as far as a rate says."""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.layer import LayerContext
from zoo.blocks.matrix_state import MatrixStateLayer, Read, resolve_matrix_heads
from zoo.blocks.norms import unit_length
from zoo.blocks.window import Shared
from zoo.config import Config
from zoo.limits import MOST, WIDEST_HEAD

__all__ = ["DeltaConfig", "DeltaLayer"]


class DeltaConfig(Config):
    """Options of mixers that are made of the delta rule."""

    heads: int | None = Field(None, ge=1, le=MOST)
    """Heads of queries and keys. Where only one of heads and head width is set, the other keeps heads x head width."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of a key."""

    value_heads: int | None = Field(None, ge=1, le=MOST)
    """Heads of values, each with a state; keys are shared by groups of them. None: as many as of keys."""

    expand: int = Field(1, ge=1, le=MOST)
    """Width of a value over that of a key."""

    convolution: int | None = Field(4, ge=1, le=MOST)
    """Tokens that the convolution of queries, keys and values sees; None: there is none."""

    negative_eigenvalues: bool = False
    """Rates up to 2, where they end at 1: what is held for a key may be turned round."""


class DeltaLayer(MatrixStateLayer):
    """SiLU, behind the convolution if there is one, queries and keys of unit length, and rates `sigmoid(W x)` a head.

    Args:
        config: options of the heads.
        context: what the model says.
        p: the power of the keys.
        scale: factor on `q . k`; None: `1 / sqrt(K)`.
    """

    def __init__(self, config: DeltaConfig, context: LayerContext, *, p: int = 1, scale: float | None = None) -> None:
        heads = resolve_matrix_heads(
            context, config.heads, config.head_width, value_heads=config.value_heads, expand=config.expand
        )
        super().__init__(context, heads, convolution=config.convolution, corrects=True, p=p, scale=scale)
        # A convolution has SiLU behind it.
        self.activation: Callable[[Tensor], Tensor] = F.silu if config.convolution is None else nn.Identity()
        self.rate = nn.Linear(context.width, heads.value, bias=False)
        self.largest_rate = 2.0 if config.negative_eigenvalues else 1.0

    @abstractmethod
    def log_gates(self, x: Tensor) -> Tensor | None:
        """Log gates of tokens `x [..., M]`: a head `[..., Hv]`, a key channel `[..., Hv, K]`, or none."""

    def read(self, x: Tensor, mixed: Read, shared: Shared) -> Read:
        rate = self.rate(x)
        beta = self.largest_rate * torch.sigmoid(rate.to(torch.promote_types(rate.dtype, torch.float32)))
        q, k = (unit_length(self.activation(x)) for x in mixed[:2])
        return Read(q, k, self.activation(mixed.v), self.log_gates(x), beta)
