"""What stays of an architecture around a mixer that is not its own: Mamba-2's convolution and gate, RWKV-7's shift."""

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_state
from zoo.blocks.convolution import CausalConvolution
from zoo.blocks.in_float32 import in_float32
from zoo.blocks.layer import LayerContext, Room
from zoo.blocks.linear import ResidualLinear, weight_of
from zoo.blocks.low_rank import LowRank, low_rank
from zoo.blocks.mixer import Mixer
from zoo.blocks.norms import RMSNorm
from zoo.blocks.token_shift import lerp_start, shift
from zoo.blocks.window import Token, Window

__all__ = ["Around", "AroundName", "AroundState", "ConvolvedMixer", "ShiftedMixer", "put_around"]

AroundName = Literal["none", "mamba2", "rwkv7"]
_CONVOLUTION = 4  # tokens, as in Mamba-2


class AroundState(NamedTuple):
    """`tail`, the last inputs `[B, W - 1, M]` or the last one `[B, M]`, and the mixer's own state."""

    tail: Tensor
    mixer: Any


class Around(Mixer):
    """A mixer between two layers that see the tokens before: what stands before it, and a gate behind it."""

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__()
        self.mixer = mixer
        self.width = context.width

    @abstractmethod
    def before(self, x: Tensor, tail: Tensor | None, window: Window) -> tuple[Tensor, Tensor]:
        """The mixer's input `[B, T, M]`, and the tail after it."""

    @abstractmethod
    def before_token(self, x: Tensor, tail: Tensor, token: Token) -> Tensor:
        """The same for one token `[B, M]`, with the tail written in place."""

    @abstractmethod
    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, from this layer's input x and the mixer's output y."""

    @abstractmethod
    def empty_tail(self, room: Room) -> Tensor:
        """The tail before the first token."""

    @abstractmethod
    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        """Raise an InputError for a tail of other sizes, or on another device than x."""

    def mix(self, x: Tensor, state: AroundState | None, window: Window) -> tuple[Tensor, AroundState]:
        tail, past = (None, None) if state is None else state
        u, tail = self.before(x, tail, window)
        y, past = self.mixer(u, past, window=window)
        return self.behind(x, y), AroundState(tail, past)

    def mix_token(self, x: Tensor, state: AroundState, token: Token) -> Tensor:
        y, _ = self.mixer(self.before_token(x, state.tail, token), state.mixer, window=token)
        return self.behind(x, y)

    def empty_state(self, room: Room) -> AroundState:
        return AroundState(self.empty_tail(room), self.mixer.empty_state(room))  # of which copies are kept, if any

    def capacity(self, state: AroundState) -> int | None:
        return self.mixer.capacity(state.mixer)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, AroundState, x)
        self.check_tail(state.tail, x)
        self.mixer.check_state(state.mixer, x)

    @property
    @abstractmethod
    def own_halo(self) -> int:
        """As `halo`, without the mixer's."""

    @property
    def halo(self) -> int | None:
        return None if self.mixer.halo is None else max(self.own_halo, self.mixer.halo)

    @property
    def head_counts(self) -> tuple[int, int] | None:
        return self.mixer.head_counts

    def flops(self, tokens: int) -> int:
        return self.mixer.flops(tokens)


class ConvolvedMixer(Around):
    """`W_o RMSNorm(mixer(silu(conv(x))) * silu(W_z x))`: Mamba-2's convolution and gate at the model's width."""

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__(mixer, context)
        self.convolution = CausalConvolution(context.width, _CONVOLUTION)
        self.gate = nn.Linear(context.width, context.width, context.bias)
        self.norm = RMSNorm(context.width, context.norm_eps)
        self.output = ResidualLinear(context.width, context.width, context.bias)

    def before(self, x: Tensor, tail: Tensor | None, window: Window) -> tuple[Tensor, Tensor]:
        return self.convolution(x, tail, window)

    def before_token(self, x: Tensor, tail: Tensor, token: Token) -> Tensor:
        return self.convolution(x, tail, token)[0]

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        return self.output(self.norm(y * F.silu(self.gate(x))))

    def empty_tail(self, room: Room) -> Tensor:
        return room.zeros(weight_of(self.output), _CONVOLUTION - 1, self.width)

    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        self.convolution.check_tail("tail", tail, x)

    @property
    def own_halo(self) -> int:
        return self.convolution.width - 1

    def flops(self, tokens: int) -> int:
        return super().flops(tokens) + self.convolution.flops(tokens)


class ShiftedMixer(Around):
    """`mixer(x_t + (x_{t-1} - x_t) * mu) * gate(x_t)`: RWKV-7's token shift, and its gate of low rank.

    The gate starts at about one, where RWKV-7's starts small before a projection of zeros.
    """

    own_halo = 1

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__(mixer, context)
        self.context = context
        self.mu = nn.Parameter(torch.empty(context.width))
        self.gate = LowRank(context.width, low_rank(context.width, 5.0), torch.sigmoid, bias=True)
        self.initialize(std=0.02)

    @in_float32
    def initialize(self, std: float) -> None:
        """Start as RWKV-7's keys and values do, whatever `std` other weights have."""
        left = 1 - self.context.layer / self.context.layers
        with torch.no_grad():
            self.mu.copy_(lerp_start(self.width, 0.7 * left, self.mu.device))
        assert self.gate.expand.bias is not None
        nn.init.ones_(self.gate.expand.bias)

    def before(self, x: Tensor, tail: Tensor | None, window: Window) -> tuple[Tensor, Tensor]:
        earlier, tail = shift(x, tail, window)
        return torch.lerp(x, earlier, self.mu.to(x.dtype)), tail

    def before_token(self, x: Tensor, tail: Tensor, token: Token) -> Tensor:
        u = torch.lerp(x, tail.to(x.dtype), self.mu.to(x.dtype))
        tail.copy_(x)
        return u

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.gate(x)

    def empty_tail(self, room: Room) -> Tensor:
        return room.zeros(self.mu, self.width)

    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        check_part("tail", tail, (x.shape[0], self.width), None, x.device)


def put_around(name: AroundName, mixer: Mixer, context: LayerContext) -> Mixer:
    """Return the mixer as it stands in an architecture's block; the architecture's own has all this inside."""
    if name in ("none", mixer.architecture):
        return mixer
    return ConvolvedMixer(mixer, context) if name == "mamba2" else ShiftedMixer(mixer, context)
