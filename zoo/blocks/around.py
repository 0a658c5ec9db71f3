"""What stays of an architecture around a mixer that is not its own: Mamba-2's convolution and gate, RWKV-7's shift."""

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_part, check_sequence, check_state
from zoo.blocks.convolution import CausalConvolution
from zoo.blocks.linear import ResidualLinear
from zoo.blocks.low_rank import LowRank, low_rank
from zoo.blocks.mixer import LayerContext, Mixer, MixerOutput, ValueSharingMixer, mix, mix_step
from zoo.blocks.norms import RMSNorm
from zoo.blocks.positions import advance
from zoo.blocks.token_shift import lerp_start, shift

__all__ = ["Around", "AroundName", "AroundState", "ConvolvedMixer", "ShiftedMixer", "put_around"]

AroundName = Literal["none", "mamba2", "rwkv7"]
_CONVOLUTION = 4  # tokens, as in Mamba-2


class AroundState(NamedTuple):
    """`tail`, the last inputs `[B, W - 1, M]` or the last one `[B, M]`; the mixer's own state; `position [B]` int64."""

    tail: Tensor
    mixer: Any
    position: Tensor


class Around(ValueSharingMixer):
    """A mixer between two layers that see the tokens before: what stands before it, and a gate behind it."""

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__()
        self.mixer = mixer
        self.width = context.width

    @abstractmethod
    def before(
        self, x: Tensor, tail: Tensor | None, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mixer's input `[B, T, M]`, and the tail after it."""

    @abstractmethod
    def step_before(self, x: Tensor, tail: Tensor) -> Tensor:
        """The same for one token `[B, M]`, with the tail written in place."""

    @abstractmethod
    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, from this layer's input x and the mixer's output y."""

    @abstractmethod
    def init_tail(self, batch_size: int, **options: Any) -> Tensor:
        """The tail before the first token."""

    @abstractmethod
    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        """Raise an InputError for a tail of other sizes, or on another device than x."""

    def mix(
        self,
        x: Tensor,
        first_values: Tensor | None,
        state: AroundState | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[MixerOutput, Tensor | None]:
        check_sequence(x, lengths, resets)
        tail, past, position = (None, None, None) if state is None else self._split(state, x)
        u, tail = self.before(x, tail, lengths, resets)
        (y, past), first_values = mix(self.mixer, u, first_values, past, return_state, lengths, resets)
        after = AroundState(tail, past, advance(position, x, lengths)) if return_state else None
        return MixerOutput(self.behind(x, y), after), first_values

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> AroundState:
        past = self.mixer.init_state(batch_size, max_len=max_len, device=device, dtype=dtype)
        weight = next(self.parameters())
        device, dtype = device or weight.device, dtype or weight.dtype
        tail = self.init_tail(batch_size, device=device, dtype=dtype)
        return AroundState(tail, past, torch.zeros(batch_size, device=device, dtype=torch.int64))

    @torch.no_grad()
    def mix_step(self, x: Tensor, first_values: Tensor | None, state: AroundState) -> tuple[Tensor, Tensor | None]:
        tail, past, position = self._split(state, x)
        y, first_values = mix_step(self.mixer, self.step_before(x, tail), first_values, past)
        position.add_(1)
        return self.behind(x, y), first_values

    @property
    def head_counts(self) -> tuple[int, int] | None:
        return self.mixer.head_counts

    def flops(self, tokens: int) -> int:
        return self.mixer.flops(tokens)

    def check_state(self, state: Any, x: Tensor) -> None:
        check_state(state, AroundState, x)
        self.check_tail(state.tail, x)
        self.mixer.check_state(state.mixer, x)

    def _split(self, state: AroundState, x: Tensor) -> AroundState:
        self.check_state(state, x)
        return state


class ConvolvedMixer(Around):
    """`W_o RMSNorm(mixer(silu(conv(x))) * silu(W_z x))`: Mamba-2's convolution and gate at the model's width."""

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__(mixer, context)
        self.convolution = CausalConvolution(context.width, _CONVOLUTION)
        self.gate = nn.Linear(context.width, context.width, context.bias)
        self.norm = RMSNorm(context.width, context.norm_eps)
        self.output = ResidualLinear(context.width, context.width, context.bias)

    def before(
        self, x: Tensor, tail: Tensor | None, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, tail = self.convolution(x, tail, lengths=lengths, resets=resets)
        return F.silu(y), tail

    def step_before(self, x: Tensor, tail: Tensor) -> Tensor:
        return F.silu(self.convolution.step(x, tail))

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        return self.output(self.norm(y * F.silu(self.gate(x))))

    def init_tail(self, batch_size: int, **options: Any) -> Tensor:
        return torch.zeros(batch_size, _CONVOLUTION - 1, self.width, **options)

    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        self.convolution.check_tail("tail", tail, x)

    def flops(self, tokens: int) -> int:
        return super().flops(tokens) + 2 * _CONVOLUTION * self.width * tokens


class ShiftedMixer(Around):
    """`mixer(x_t + (x_{t-1} - x_t) * mu) * gate(x_t)`: RWKV-7's token shift, and its gate of low rank.

    The gate starts at about one, where RWKV-7's starts small before a projection of zeros.
    """

    def __init__(self, mixer: Mixer, context: LayerContext) -> None:
        super().__init__(mixer, context)
        self.context = context
        self.mu = nn.Parameter(torch.empty(context.width))
        self.gate = LowRank(context.width, low_rank(context.width, 5.0), torch.sigmoid, bias=True)
        self.initialize(std=0.02)

    def initialize(self, std: float) -> None:
        """Start as RWKV-7's keys and values do, whatever `std` other weights have."""
        left = 1 - self.context.layer / self.context.layers
        with torch.no_grad():
            self.mu.copy_(lerp_start(self.width, 0.7 * left, self.mu.device))
        assert self.gate.expand.bias is not None
        nn.init.ones_(self.gate.expand.bias)

    def before(
        self, x: Tensor, tail: Tensor | None, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        earlier, tail = shift(x, tail, lengths=lengths, resets=resets)
        return torch.lerp(x, earlier, self.mu.to(x.dtype)), tail

    def step_before(self, x: Tensor, tail: Tensor) -> Tensor:
        u = torch.lerp(x, tail.to(x.dtype), self.mu.to(x.dtype))
        tail.copy_(x)
        return u

    def behind(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.gate(x)

    def init_tail(self, batch_size: int, **options: Any) -> Tensor:
        return torch.zeros(batch_size, self.width, **options)

    def check_tail(self, tail: Tensor, x: Tensor) -> None:
        check_part("tail", tail, (x.shape[0], self.width), None, x.device)


def put_around(name: AroundName, own: bool, mixer: Mixer, context: LayerContext) -> Mixer:
    """The mixer as it stands in an architecture's block; its own mixer has all this inside.

    Args:
        name: the architecture.
        own: whether the mixer is that architecture's own.
        mixer: what stands inside.
        context: what the model says.
    """
    if name == "none" or own:
        return mixer
    return ConvolvedMixer(mixer, context) if name == "mamba2" else ShiftedMixer(mixer, context)
