"""RWKV-7's time mixing: a token shift, a state that unlearns before it learns, decays by channel."""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.in_float32 import in_float32
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import ResidualLinear, own_part, weight_of
from zoo.blocks.low_rank import LowRank, low_rank
from zoo.blocks.mixer import Mixer
from zoo.blocks.norms import HeadLayerNorm
from zoo.blocks.token_shift import lerp_start, shift
from zoo.blocks.treatment import Treatment
from zoo.blocks.window import Shared, Token, Window
from zoo.config import Config
from zoo.errors import ConfigError
from zoo.kernels.precision import accumulation_dtype
from zoo.kernels.rwkv7 import init_rwkv7_state, rwkv7, rwkv7_flops, rwkv7_step
from zoo.limits import WIDEST, WIDEST_HEAD

__all__ = ["FIRST_VALUES", "Rwkv7", "Rwkv7Config", "Rwkv7State"]

FIRST_VALUES = "rwkv7.first_values"
"""What the first such layer of a model shares with the others is called: its values, `[..., M]`."""

_FASTEST_DECAY = math.exp(-0.5)  # -log w is below this
_LOG_W_FLOOR = -0.607  # that, also after rounding; kernels that know it may divide by decays


class Rwkv7Config(Config):
    """Options of RWKV-7's time mixing."""

    name: Literal["rwkv7"] = "rwkv7"

    head_width: int | None = Field(None, ge=1, le=WIDEST_HEAD)
    """Width of a head; None: the model's."""

    decay_rank: int | None = Field(None, ge=1, le=WIDEST)
    """Rank of the decays' projection; None: 2.5 sqrt(width) to a multiple of 32."""

    rate_rank: int | None = Field(None, ge=1, le=WIDEST)
    """Rank of the removal rates' projection; None: 2.5 sqrt(width) to a multiple of 32."""

    value_rank: int | None = Field(None, ge=1, le=WIDEST)
    """Rank of what mixes in the first layer's values; None: 1.7 sqrt(width) to a multiple of 32."""

    gate_rank: int | None = Field(None, ge=1, le=WIDEST)
    """Rank of the output gate's projection; None: 5 sqrt(width) to a multiple of 32."""


class Rwkv7State(NamedTuple):
    """`last [B, M]`, the last input, and `S [B, H, N, N]`, float32."""

    last: Tensor
    S: Tensor


class _Projected(NamedTuple):
    """What the recurrence takes, `[..., H, N]`, and the gate `[..., M]`."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kappa: Tensor
    a: Tensor
    gate: Tensor


class Rwkv7(Mixer):
    """`S_t = diag(w_t) S_{t-1} - (kappa_t * a_t)(kappa_t^T S_{t-1}) + k_t v_t^T`, `o_t = S_t^T r_t` per head.

    Every input is a mixture of the token and the one before it; the output is normalised by head, joined by what the
    token gives to itself, gated, and projected. Layers after the first mix the first layer's values into their own.

    Source: Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv 2503.14456.

    Raises:
        ConfigError: the head width does not divide the model's width.
    """

    architecture = "rwkv7"
    treatments: ClassVar = {"decay.expand.bias": Treatment(decays=False, share=2.0)}

    def __init__(self, config: Rwkv7Config, context: LayerContext) -> None:
        super().__init__()
        width = context.width
        self.context = context
        self.width = config.head_width or context.head_width
        if width % self.width:
            raise ConfigError(f"head_width: must divide the width {width}, got {self.width}")
        self.heads = width // self.width
        self.mu = nn.Parameter(torch.empty(6, width))  # for r, w, k, v, a and the gate
        self.receptance, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.decay = LowRank(width, config.decay_rank or low_rank(width, 2.5), torch.tanh, bias=True)
        self.rate = LowRank(width, config.rate_rank or low_rank(width, 2.5), None, bias=True)
        self.gate = LowRank(width, config.gate_rank or low_rank(width, 5.0), torch.sigmoid, bias=False)
        self.first_share: LowRank | None = None
        if context.layer > 0:
            self.first_share = LowRank(width, config.value_rank or low_rank(width, 1.7), None, bias=True)
        self.removal = nn.Parameter(torch.empty(width))  # k_k
        self.replacement = nn.Parameter(torch.empty(width))  # k_a
        self.bonus = nn.Parameter(torch.empty(self.heads, self.width))  # r_k
        self.norm = HeadLayerNorm(self.heads, self.width, eps=self.width * 1e-5)
        self.output = ResidualLinear(width, width, bias=False)
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Start as published, whatever `std` other weights have."""
        width, layer, layers = self.context.width, self.context.layer, self.context.layers
        depth, left = layer / max(1, layers - 1), 1 - layer / layers
        device = self.mu.device
        channel = torch.arange(width, device=device)
        linear = channel / max(1, width - 1) - 0.5
        middle = (self.width - 1) / 2
        zigzag = (channel % self.width - middle) / max(1.0, middle)
        zigzag = zigzag * zigzag.abs()
        exponents = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        with torch.no_grad():
            for mu, exponent in zip(self.mu, exponents, strict=True):
                mu.copy_(lerp_start(width, exponent * left, device))
            self.decay.expand.bias.copy_(-6 + 6 * (linear + 0.5) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag)
            self.rate.expand.bias.copy_(-0.19 + 0.3 * zigzag + 0.4 * linear)
            if self.first_share is not None:
                self.first_share.expand.bias.copy_(0.73 - 0.4 * linear)
            self.removal.copy_(0.71 - 0.1 * linear)
        nn.init.constant_(self.replacement, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        for matrix, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            nn.init.uniform_(matrix.weight, -bound / math.sqrt(width), bound / math.sqrt(width))
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.norm.weight, ((1 + layer) / layers) ** 0.7)

    def mix(self, x: Tensor, state: Rwkv7State | None, window: Window) -> tuple[Tensor, Rwkv7State | None]:
        last, S = (None, None) if state is None else state
        before, last = shift(x, last, window)
        projected = self._project(x, before, window.shared)
        o, S = rwkv7(
            *projected[:6], state=S, return_state=window.return_state, lengths=window.lengths, resets=window.resets,
            log_w_floor=_LOG_W_FLOOR, group=window.group,
        )  # fmt: skip
        return self._output(o, projected), None if S is None else Rwkv7State(last, S)

    def mix_token(self, x: Tensor, state: Rwkv7State, token: Token) -> Tensor:
        projected = self._project(x, state.last.to(x.dtype), token.shared)
        o = rwkv7_step(*projected[:6], state=state.S)
        state.last.copy_(x)
        return self._output(o, projected)

    def empty_state(self, room: Room) -> Rwkv7State:
        weight = weight_of(self.output)
        S = init_rwkv7_state(
            room.batch_size, self.heads, self.width, room.device or weight.device, accumulation_dtype(weight.dtype)
        )
        return Rwkv7State(room.zeros(weight, self.context.width), S)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, Rwkv7State, x)
        rows, sums = x.shape[0], accumulation_dtype(weight_of(self.output).dtype)
        check_part("last", state.last, (rows, self.context.width), None, x.device)
        check_part("S", state.S, (rows, self.heads, self.width, self.width), sums, x.device)

    @property
    def halo(self) -> int:
        return 1

    @property
    def head_counts(self) -> tuple[int, int]:
        return self.heads, self.heads

    @property
    def head_groups(self) -> int:
        return self.heads

    def keep_share(self, count: int) -> None:
        self.heads //= count

    def flops(self, tokens: int) -> int:
        return rwkv7_flops(1, tokens, self.heads, self.width)

    def _project(self, x: Tensor, before: Tensor, shared: Shared) -> _Projected:
        """What the recurrence takes of tokens x and those before them, and of the model's first such layer."""
        r, w, k, v, a, gate = (torch.lerp(x, before, mu) for mu in own_part(self.mu).to(x.dtype))
        values = self.value(v)
        first_values = shared.earlier.get(FIRST_VALUES)
        if first_values is None:
            shared.left[FIRST_VALUES] = values
        elif self.first_share is not None:
            values = torch.lerp(values, first_values, torch.sigmoid(self.first_share(v)))
        # Decays keep their digits: over a long context they are powers of numbers near 1.
        raised = self.decay(w)
        log_w = -_FASTEST_DECAY * torch.sigmoid(raised.to(torch.promote_types(raised.dtype, torch.float32)))
        rate = torch.sigmoid(self.rate(a))
        k = self.key(k)
        kappa = F.normalize(self._heads(k * own_part(self.removal).to(k.dtype)), dim=-1)
        k = k * (1 + (rate - 1) * own_part(self.replacement).to(k.dtype))
        r, log_w, k, v, rate = (self._heads(part) for part in (self.receptance(r), log_w, k, values, rate))
        return _Projected(r, log_w, k, v, kappa.to(k.dtype), rate, self.gate(gate))

    def _output(self, o: Tensor, token: _Projected) -> Tensor:
        own = (token.r * token.k * own_part(self.bonus).to(o.dtype)).sum(-1, keepdim=True) * token.v
        return self.output((self.norm(o) + own).flatten(-2) * token.gate)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.width))
