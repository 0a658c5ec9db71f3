"""A layer whose heads each keep a matrix of keys by values, around the op `delta_attention`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.convolution import CausalConvolution, NoConvolution
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import ResidualLinear, weight_of
from zoo.blocks.mixer import Mixer
from zoo.blocks.norms import RMSNorm
from zoo.blocks.rows import OrderedRows, RowOrder
from zoo.blocks.window import Shared, Token, Window
from zoo.errors import ConfigError
from zoo.kernels.delta import delta_attention, delta_attention_step, delta_flops, init_delta_state
from zoo.kernels.power import state_size
from zoo.kernels.precision import accumulation_dtype

__all__ = ["GatedOutput", "MatrixHeads", "MatrixState", "MatrixStateLayer", "Read", "resolve_matrix_heads"]


class MatrixHeads(NamedTuple):
    """Counts of heads of queries and keys, and of values; the widths of one of each."""

    key: int
    value: int
    key_width: int
    value_width: int

    def share(self, count: int) -> "MatrixHeads":
        """One of `count` equal shares."""
        return self._replace(key=self.key // count, value=self.value // count)

    @property
    def keys(self) -> int:
        """Channels of all keys, and of all queries."""
        return self.key * self.key_width

    @property
    def values(self) -> int:
        """Channels of all values."""
        return self.value * self.value_width


class MatrixState(NamedTuple):
    """`convolution [B, W - 1, channels]`, the convolution's last inputs; `S [B, Hv, D, V]`, float32."""

    convolution: Tensor
    S: Tensor


class Read(NamedTuple):
    """What the op takes: q and k `[..., Hk, K]`, v `[..., Hv, V]`; log gates and rates, or None, as in the op."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None = None
    beta: Tensor | None = None


def resolve_matrix_heads(
    context: LayerContext, heads: int | None, head_width: int | None, *, value_heads: int | None = None,
    expand: int = 1, share: int = 1,
) -> MatrixHeads:  # fmt: skip
    """Return the sizes of heads, of which those that are None follow from the others and the model's.

    Args:
        context: the model's.
        heads: of queries and keys.
        head_width: of a key.
        value_heads: of values; None: as many as of keys.
        expand: width of a value over that of a key.
        share: the model's heads are so many times as wide as keys.

    Raises:
        ConfigError: a count does not divide what it has to divide.
    """
    total = max(1, context.heads * context.head_width // share)
    if heads is None and head_width is None:
        heads, head_width = context.heads, max(1, context.head_width // share)
    elif head_width is None:
        heads, head_width = heads, _divide(total, heads, "heads")
    elif heads is None:
        heads = _divide(total, head_width, "head_width")
    assert heads is not None
    value_heads = value_heads or heads
    if value_heads % heads:
        raise ConfigError(f"value_heads: must be a multiple of the {heads} heads, got {value_heads}")
    return MatrixHeads(heads, value_heads, head_width, expand * head_width)


def _divide(total: int, part: int | None, name: str) -> int:
    assert part is not None
    if total % part:
        raise ConfigError(f"{name}: must divide the width of all keys, {total}, got {part}")
    return total // part


class GatedOutput(nn.Module):
    """`W (RMSNorm(o) * f(gate(x)))`: the norm is over each head, with one weight for all of them.

    Args:
        context: the model's.
        heads: of o `[..., Hv, V]`.
        gate: maps x `[..., M]` to `[..., Hv V]`; None: no gate.
        activation: f.
    """

    def __init__(
        self,
        context: LayerContext,
        heads: MatrixHeads,
        gate: nn.Module | None,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(heads.value_width, context.norm_eps)
        self.gate = gate
        self.activation = activation
        self.projection = ResidualLinear(heads.values, context.width, context.bias)

    def forward(self, o: Tensor, x: Tensor) -> Tensor:
        y = self.norm(o).flatten(-2)
        return self.projection(y if self.gate is None else y * self.activation(self.gate(x)))


class MatrixStateLayer(OrderedRows, Mixer):
    """Projections to heads, a short convolution, `delta_attention`, and `self.output(o, x)`, which a mixer chooses.

    Channels of the projection and of the convolution stand by key head: the query's, the key's, its values'.

    A mixer says what its op reads of a token (`read`).

    Args:
        context: what the model says.
        heads: sizes of the heads.
        convolution: tokens that the convolution of queries, keys and values sees; None: there is none.
        corrects: whether the op has rates of writing.
        p: the power of the keys.
        scale: factor on `q . k`; None: `1 / sqrt(K)`.
    """

    output: nn.Module

    def __init__(
        self, context: LayerContext, heads: MatrixHeads, *, convolution: int | None, corrects: bool, p: int = 1,
        scale: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.corrects, self.p, self.scale = heads, corrects, p, scale
        channels = 2 * heads.keys + heads.values
        sizes = (heads.key_width, heads.key_width, heads.values // heads.key)
        self.row_orders = dict.fromkeys(("input", "convolution"), RowOrder(heads.key, sizes))
        self.input = nn.Linear(context.width, channels, context.bias)
        self.convolution = (
            NoConvolution(channels) if convolution is None else CausalConvolution(channels, convolution, bias=False)
        )

    @abstractmethod
    def read(self, x: Tensor, mixed: Read, shared: Shared) -> Read:
        """What the op takes, from tokens `x [..., M]` and their queries, keys and values behind the convolution."""

    def mix(self, x: Tensor, state: MatrixState | None, window: Window) -> tuple[Tensor, MatrixState | None]:
        tail, S = (None, None) if state is None else state
        mixed, tail = self.convolution(self.input(x), tail, window)
        o, S = delta_attention(
            *self.read(x, self._split(mixed), window.shared), p=self.p, scale=self.scale, state=S,
            return_state=window.return_state, lengths=window.lengths, resets=window.resets, group=window.group,
        )  # fmt: skip
        return self.output(o, x), None if S is None else MatrixState(tail, S)

    def mix_token(self, x: Tensor, state: MatrixState, token: Token) -> Tensor:
        mixed, _ = self.convolution(self.input(x), state.convolution, token)
        o = delta_attention_step(
            *self.read(x, self._split(mixed), token.shared), state=state.S, p=self.p, scale=self.scale
        )
        return self.output(o, x)

    def empty_state(self, room: Room) -> MatrixState:
        weight, heads = weight_of(self.input), self.heads
        S = init_delta_state(
            room.batch_size, heads.value, heads.key_width, heads.value_width, self.p,
            device=room.device or weight.device, dtype=accumulation_dtype(weight.dtype),
        )  # fmt: skip
        return MatrixState(room.zeros(weight, self.convolution.width - 1, 2 * heads.keys + heads.values), S)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, MatrixState, x)
        self.convolution.check_tail("convolution", state.convolution, x)
        heads, dtype = self.heads, accumulation_dtype(weight_of(self.input).dtype)
        shape = (x.shape[0], heads.value, state_size(heads.key_width, self.p), heads.value_width)
        check_part("S", state.S, shape, dtype, x.device)

    @property
    def halo(self) -> int:
        return self.convolution.width - 1

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads.value, self.heads.key

    @property
    def head_groups(self) -> int:
        return self.heads.key

    def keep_share(self, count: int) -> None:
        self.heads = self.heads.share(count)
        self.convolution.keep_share(count)

    def flops(self, tokens: int) -> int:
        heads = self.heads
        core = delta_flops(1, tokens, heads.value, heads.key_width, heads.value_width, self.p, corrects=self.corrects)
        return core + self.convolution.flops(tokens)

    def _split(self, mixed: Tensor) -> Read:
        q, k, v = self.row_orders["input"].kinds(mixed)
        return Read(q, k, v.unflatten(-1, (-1, self.heads.value_width)).flatten(-3, -2))
