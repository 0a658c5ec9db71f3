"""Mamba-2's time mixing: a short convolution, linear attention with gates that depend on the token, a gated norm."""

from bisect import bisect_right
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.checks import check_state
from zoo.blocks.convolution import CausalConvolution
from zoo.blocks.decay import PositiveRange, Range, draw_decays, draw_steps
from zoo.blocks.gate import with_resets
from zoo.blocks.in_float32 import in_float32
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import ResidualLinear, own_part, weight_of
from zoo.blocks.mixer import Mixer
from zoo.blocks.norms import GroupedRMSNorm
from zoo.blocks.power_layer import check_power_state
from zoo.blocks.rows import OrderedRows, RowOrder
from zoo.blocks.window import Token, Window
from zoo.config import Config
from zoo.errors import ConfigError, InputError
from zoo.kernels.power import (
    Heads,
    PowerState,
    forward_flops,
    init_power_state,
    power_attention,
    power_attention_step,
    state_size,
)
from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.state_limit import largest_state
from zoo.limits import MOST, WIDEST_HEAD

__all__ = ["Mamba2", "Mamba2Config", "Mamba2State"]

_WIDEST_HEAD = 64


class Mamba2Config(Config):
    """Options of Mamba-2."""

    name: Literal["mamba2"] = "mamba2"

    expand: int = Field(2, ge=1, le=MOST)
    """Inner width over the model's."""

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Inner channels of a head; None: 64, or the next number below it that divides the inner width."""

    groups: int = Field(1, ge=1, le=MOST)
    """Groups of heads that share keys and queries (there B and C)."""

    state_width: int = Field(128, ge=1, le=WIDEST_HEAD)
    """Width of keys and queries; at p = 1 the rows of a head's state."""

    convolution: int = Field(4, ge=1, le=MOST)
    """Tokens that the convolution sees."""

    p: int = Field(1, ge=1, le=4)
    """The power of the scores; 1 is Mamba-2, and 2 takes C(state_width + 1, 2) rows a head, so fewer channels do."""

    decay: PositiveRange = (1.0, 16.0)
    """Range of -A at the start, from which it is drawn evenly."""

    step: PositiveRange = (1e-3, 0.1)
    """Range of the step sizes at the start, drawn evenly in their logarithm."""

    step_limit: Range | None = None
    """What step sizes are kept to; None: any."""


class Mamba2State(NamedTuple):
    """What the past left.

    `convolution [B, W - 1, d + 2 G N]`, the last inputs of the convolution; `S [B, H, D, P]` and `z [B, H, D]` as in
    `zoo.PowerState`.
    """

    convolution: Tensor
    S: Tensor
    z: Tensor


class Mamba2(OrderedRows, Mixer):
    """`S_t = exp(delta_t A) S_{t-1} + B_t (delta_t x_t)^T`, `y_t = S_t^T C_t + D x_t` per head, then a gated norm.

    x, B and C are projections of the input behind a convolution and SiLU, `delta_t = softplus(dt_t + b)` a step size a
    head, and the output is `W_o RMSNorm(y_t * SiLU(z_t))`. It is power attention with queries C, keys B, values
    `delta x` and log gates `delta A`; with p > 1 the state is that of `m(B)`.

    Source: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.

    Raises:
        ConfigError: head_width does not divide the inner width, or groups do not divide the heads.
    """

    architecture = "mamba2"

    def __init__(self, config: Mamba2Config, context: LayerContext) -> None:
        super().__init__()
        self.config = config
        self.inner = config.expand * context.width
        self.width = config.head_width or _head_width(self.inner)
        if self.inner % self.width:
            raise ConfigError(f"head_width: must divide the inner width {self.inner}, got {self.width}")
        self.heads = self.inner // self.width
        if self.heads % config.groups:
            raise ConfigError(f"groups: must divide {self.heads}, the number of heads, got {config.groups}")
        self.groups = config.groups
        self.shared = config.groups * config.state_width  # channels of all keys, and of all queries
        channels = self.inner + 2 * self.shared
        values, keys = self.inner // self.groups, config.state_width
        self.row_orders = {
            "input": RowOrder(self.groups, (values, values, keys, keys, self.heads // self.groups)),
            "convolution": RowOrder(self.groups, (values, keys, keys)),
        }
        self.input = nn.Linear(context.width, self.inner + channels + self.heads, context.bias)
        self.convolution = CausalConvolution(channels, config.convolution)
        self.log_decay = nn.Parameter(torch.empty(self.heads))  # log(-A)
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.empty(self.heads))  # D
        self.norm = GroupedRMSNorm(self.inner, config.groups, context.norm_eps)
        self.output = ResidualLinear(self.inner, context.width, context.bias)
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Draw decays and step sizes from their ranges, whatever `std` other weights have."""
        super().initialize(std)
        draw_decays(self.log_decay, *self.config.decay)
        draw_steps(self.step_bias, *self.config.step)
        nn.init.ones_(self.skip)

    def mix(self, x: Tensor, state: Mamba2State | None, window: Window) -> tuple[Tensor, Mamba2State | None]:
        tail, past = (None, None) if state is None else (state.convolution, PowerState(state.S, state.z))
        z, mixed, steps = self._project(x)
        mixed, tail = self.convolution(mixed, tail, window)
        values, k, q = self._heads(mixed)
        steps, log_g = self._gates(steps)
        o, past = power_attention(
            q, k, values * steps[..., None].to(values.dtype), with_resets(log_g, window.resets, self.heads),
            p=self.config.p, scale=1.0, normalize=False, state=past, return_state=window.return_state,
            lengths=window.lengths, save_states=self.keep_states, group=window.group,
        )  # fmt: skip
        return self._output(o, values, z), None if past is None else Mamba2State(tail, *past)

    def mix_token(self, x: Tensor, state: Mamba2State, token: Token) -> Tensor:
        z, mixed, steps = self._project(x)
        mixed, _ = self.convolution(mixed, state.convolution, token)
        values, k, q = self._heads(mixed)
        steps, log_g = self._gates(steps)
        o = power_attention_step(
            q, k, values * steps[..., None].to(values.dtype), log_g, state=PowerState(state.S, state.z),
            p=self.config.p, scale=1.0, normalize=False,
        )  # fmt: skip
        return self._output(o, values, z)

    def empty_state(self, room: Room) -> Mamba2State:
        _check_state_width(self.config, self.width)
        weight = weight_of(self.input)
        tail = room.zeros(weight, self.config.convolution - 1, self.inner + 2 * self.shared)
        past = init_power_state(
            room.batch_size, self.heads, self.config.state_width, self.width, self.config.p,
            device=room.device or weight.device, dtype=accumulation_dtype(weight.dtype),
        )  # fmt: skip
        return Mamba2State(tail, *past)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, Mamba2State, x)
        self.convolution.check_tail("convolution", state.convolution, x)
        keys, dtype = self.config.state_width, accumulation_dtype(weight_of(self.input).dtype)
        check_power_state(PowerState(state.S, state.z), x, self.heads, keys, self.width, self.config.p, dtype)

    @property
    def halo(self) -> int:
        return self.convolution.width - 1

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads, self.heads

    @property
    def head_groups(self) -> int:
        return self.groups

    def keep_share(self, count: int) -> None:
        self.inner, self.heads, self.groups, self.shared = (
            number // count for number in (self.inner, self.heads, self.groups, self.shared)
        )
        self.norm.groups = self.groups

    def flops(self, tokens: int) -> int:
        heads = Heads(self.groups, self.groups, self.heads)
        core = forward_flops(1, tokens, heads, self.config.state_width, self.width, self.config.p)
        return core + self.convolution.flops(tokens)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate z `[..., d]`, the convolution's input `[..., d + 2 G N]`, step sizes before softplus `[..., H]`."""
        sizes = (self.inner, self.inner + 2 * self.shared, self.heads)
        groups = self.input(x).unflatten(-1, (self.groups, -1)).split([size // self.groups for size in sizes], -1)
        z, mixed, steps = (kind.flatten(-2) for kind in groups)
        return z, mixed, steps

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values `[..., H, P]`, keys and queries `[..., G, N]`."""
        values, k, q = self.row_orders["convolution"].kinds(mixed)
        return values.unflatten(-1, (-1, self.width)).flatten(-3, -2), k, q

    def _gates(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes and log gates `[..., H]`, at least float32: their sums over a long context need the digits."""
        dtype = torch.promote_types(steps.dtype, torch.float32)
        steps = F.softplus(steps.to(dtype) + own_part(self.step_bias).to(dtype))
        if self.config.step_limit is not None:
            steps = steps.clamp(*self.config.step_limit)
        return steps, -own_part(self.log_decay).to(dtype).exp() * steps

    def _output(self, o: Tensor, values: Tensor, z: Tensor) -> Tensor:
        # In channels, so that its gradient is a sum over tokens, and then one over channels: the compiler cuts sums of
        # more than a few thousand, and compiles again where one over both at once gets there.
        skip = own_part(self.skip).to(o.dtype)[:, None].expand(-1, self.width).flatten()
        y = o.flatten(-2) + skip * values.flatten(-2)
        return self.output(self.norm(y * F.silu(z)))


def _head_width(inner: int) -> int:
    return max(width for width in range(1, min(_WIDEST_HEAD, inner) + 1) if inner % width == 0)


def _check_state_width(config: Mamba2Config, head_width: int) -> None:
    """Refuse a state over the op's limit by the option's own name, which the op does not know."""
    row = 4 * (head_width + 1)  # bytes, values and normaliser
    limit = largest_state()
    rows = limit // row
    needed = state_size(config.state_width, config.p)
    if needed <= rows:
        return
    fits = bisect_right(range(1, config.state_width), rows, key=lambda width: state_size(width, config.p))
    raise InputError(
        f"state_width: expected at most {fits} at p={config.p} in heads of {head_width} channels, for the limit of "
        f"{limit / 2**20:,.0f} MiB a head, was {config.state_width}, which takes "
        f"{needed * row / 2**20:,.0f} MiB; zoo.state_limit raises the limit"
    )
