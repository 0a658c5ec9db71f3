"""Ways to lay out GPUs for one model at one context: memory, what is sent, and how much of the time is computing.

A model of it and no measurement. A pass takes

    t = computing + waiting + exchanges a + states / b + max(0, weights / b - computing)

where `computing` is the share's tokens times what one takes on one GPU, in proportion to the FLOPs that its way of
passing states and of checkpointing adds, `waiting` what the last share of softmax attention takes longer than the mean,
a the latency of one exchange and b the bytes that a GPU receives in a second, of links within a node or between nodes.
States are waited for; weights and gradients are sent while layers are computed. What a GPU receives, computes and keeps
for its share is counted on code that runs (`zoo.budget.traffic`).
"""

from dataclasses import dataclass, fields

import torch

from zoo.accounting import layer_mixers
from zoo.budget.counts import check_contexts, measure
from zoo.budget.times import Times
from zoo.budget.traffic import Pass, count_pass
from zoo.builder import build
from zoo.errors import ConfigError, InputError
from zoo.models.decoder import Decoder
from zoo.recipe import Recipe

__all__ = ["Layout", "Layouts", "Links", "Room", "lay_out", "parse_links"]

_REST = 1.4
"""What a step of gpt2-124m with gated power takes over what its matrix products and its mixing take: 192 to 137 ms."""


@dataclass(frozen=True)
class Links:
    """How GPUs are connected."""

    node: int = 8
    """GPUs of a node."""
    inside: float = 300
    """GB/s that a GPU receives from others of its node."""
    between: float = 45
    """GB/s that a GPU receives from other nodes."""
    latency: float = 20
    """Microseconds that an exchange takes, however little is sent."""

    def bytes_per_second(self, processes: int) -> float:
        """Return what a GPU receives where so many neighbours exchange all with all."""
        return 1e9 * (self.inside if processes <= self.node else self.between)


@dataclass(frozen=True)
class Layout:
    """One way to lay out GPUs, each of which has one share of one sequence."""

    data_replicate: int
    data_shard: int
    context: int
    tokens: int
    """Of a share."""
    state_memory: int
    """Bytes of weights, gradients and optimiser state on a GPU, gathered layers included."""
    activation_memory: int
    """Bytes at the most, as they are without a compiler."""
    states_received: int
    """Bytes that a GPU receives in a step for the exchange along sequences."""
    weights_received: int
    """Bytes that a GPU receives in a step of weights and gradients."""
    computing: float
    """Seconds of a step."""
    seconds: float
    """Of a step, with all that is waited for."""
    efficiency: float
    """One GPU's time for a token over this one's, which sends something and may do something twice."""

    @property
    def memory(self) -> int:
        """Bytes on a GPU."""
        return self.state_memory + self.activation_memory

    @property
    def sequences(self) -> int:
        """Sequences of a step."""
        return self.data_replicate * self.data_shard

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.sequences * self.context * self.tokens / self.seconds


@dataclass(frozen=True)
class Room:
    """What there is of a GPU."""

    memory: int = 139 * 2**30
    """Bytes."""
    token_seconds: float | None = None
    """What a token takes on one, forward and backward, without checkpointing; None: by what its parts took."""


@dataclass(frozen=True)
class Layouts:
    """The layouts of one model."""

    recipe: Recipe
    gpus: int
    found: tuple[Layout, ...]
    """A layout for each number of GPUs that have a sequence together, the most efficient that fits first."""
    refused: dict[int, str]
    """Of other numbers, why there is none."""
    token_seconds: float
    """What a token takes on one GPU."""


def parse_links(text: str) -> Links:
    """Return links with what `node=8,inside=300,between=45,latency=20` says of them, or a part of it.

    Raises:
        InputError: an unknown key, or what is no number over 0.
    """
    values: dict[str, float] = {}
    names = [field.name for field in fields(Links)]
    for part in text.split(",") if text else ():
        name, _, number = part.strip().partition("=")
        try:
            values[name] = int(number) if name == "node" else float(number)
        except ValueError:
            values[name] = 0
        if name not in names or not 0 < values[name] < float("inf"):
            raise InputError(f"links: expected {', '.join(names)} as numbers over 0, such as inside=300, was {part!r}")
    return Links(**values)  # type: ignore[arg-type]


def lay_out(recipe: Recipe, gpus: int, links: Links, times: Times, room: Room) -> Layouts:
    """Return a layout for each number of GPUs that may have a sequence together, the most efficient that fits first.

    Of such as differ in copies of the model alone, the most efficient that fits is taken.

    Args:
        recipe: what to train, at its `training.context_length`, in passes of one sequence for each group of GPUs.
        gpus: how many.
        links: between them.
        times: what mixing takes, and matrix products.
        room: what a GPU has.

    Raises:
        InputError: nothing like one of the mixers was timed, and `room` does not say what a token takes; or layers are
            to be shared out.
    """
    check_contexts([recipe.training.context_length])
    if (tensor := recipe.training.parallel.tensor) > 1:
        raise InputError(f"training.parallel.tensor: expected 1, as a plan leaves layers whole, was {tensor}")
    model = _Model(recipe, times, room.token_seconds)
    found: list[Layout] = []
    refused: dict[int, str] = {}
    for context in (number for number in range(1, gpus + 1) if gpus % number == 0):
        try:
            share = model.share(context)
        except (ConfigError, InputError) as error:
            refused[context] = str(error)
            continue
        groups = gpus // context
        every = [
            model.layout(share, copies, groups // copies, context, links)
            for copies in range(1, groups + 1)
            if groups % copies == 0
        ]
        found.append(max(every, key=lambda layout: (layout.memory <= room.memory, layout.efficiency, -layout.memory)))
    found.sort(key=lambda layout: (layout.memory > room.memory, -layout.efficiency))
    return Layouts(recipe, gpus, tuple(found), refused, model.token_seconds)


class _Model:
    """What does not depend on the layout."""

    def __init__(self, recipe: Recipe, times: Times, token_seconds: float | None) -> None:
        model = build(recipe, device="meta")
        self._recipe, self._T = recipe, recipe.training.context_length
        blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
        self._parameters, self._largest = model.num_parameters(), max(blocks)
        self._around = self._parameters - sum(blocks)
        self._halo = model.halo
        self._alone = count_pass(recipe, self._T, 1, "none")
        if token_seconds is None:
            products = 3 * measure(model, self._T).weight_flops / times.peak
            token_seconds = _REST * (products + sum(_mixing(recipe, model, times)) / self._T)
        self.token_seconds = token_seconds
        layers = zip(recipe.layer_mixers, layer_mixers(model), strict=True)
        attention = sum(mixer.flops(self._T) for config, mixer in layers if config.name == "softmax")
        self._attention_seconds = token_seconds * attention / model.flops(self._T)

    def share(self, context: int) -> Pass:
        """Return what one of so many processes does for its share.

        Raises:
            ConfigError: a mixer takes whole sequences.
            InputError: they do not divide the sequence, or a layer looks back further than a share.
        """
        if self._T % context:
            raise InputError(f"{context} do not divide {self._T:,} tokens")
        if context > 1 and self._halo > self._T // context:
            raise InputError(f"a layer looks back {self._halo:,} tokens, a share has {self._T // context:,}")
        return count_pass(self._recipe, self._T // context, context, self._recipe.training.checkpointing)

    def layout(self, share: Pass, copies: int, shards: int, context: int, links: Links) -> Layout:
        """Return a layout in which each copy of the model is spread over `shards` groups of `context` GPUs."""
        tokens, spread = self._T // context, shards * context
        alone = self.token_seconds * tokens
        computing = alone * share.flops * context / self._alone.flops
        waiting = self._attention_seconds * tokens * (1 - 1 / context)
        exchanging = share.collectives * links.latency * 1e-6 + share.received / links.bytes_per_second(context)
        around = copies * spread  # neighbours of a copy are apart by as much as one is spread over
        sent, copied = self._weights_received(spread), 8 * self._parameters / spread * (copies - 1) / copies
        sending = sent / links.bytes_per_second(spread) + copied / links.bytes_per_second(around)
        seconds = computing + waiting + exchanging + max(0.0, sending - computing)
        return Layout(
            copies, shards, context, tokens, self._state_memory(spread), share.kept, share.received,
            round(sent + copied), computing, seconds, alone / seconds,
        )  # fmt: skip

    @property
    def _gathered(self) -> int:
        """Bytes of a weight where a layer is computed."""
        return getattr(torch, self._recipe.training.parallel.gather).itemsize

    def _weights_received(self, spread: int) -> float:
        """Weights come for a layer's forward pass and its backward pass, gradients go once, in float32."""
        layers = self._parameters - self._around
        return (self._gathered * (2 * layers + self._around) + 4 * self._parameters) * (spread - 1) / spread

    def _state_memory(self, spread: int) -> int:
        """A weight, its gradient and AdamW's two means in float32; where they are spread, layers that are gathered.

        Those are what stands around the layers, a layer that is computed and the next, and gradients of one.
        """
        gathered = self._around * (self._gathered + 4) + self._largest * (2 * self._gathered + 4)
        return 16 * self._parameters // spread + (gathered if spread > 1 else 0)


def _mixing(recipe: Recipe, model: Decoder, times: Times) -> list[float]:
    """Return what mixing takes in each layer for a sequence."""
    found = []
    for index, (config, mixer) in enumerate(zip(recipe.layer_mixers, layer_mixers(model), strict=True)):
        width, (heads, _) = recipe.model.layer_context(index).head_width, mixer.head_counts or (0, 0)
        seconds = times.of_heads(config.name, getattr(config, "p", None), width, recipe.training.context_length)
        if seconds is None:
            raise InputError(
                f"token-us: expected the microseconds that a token takes on one GPU (zoo bench model says), as nothing "
                f"like mixer {config.name} with heads of {width} was timed"
            )
        found.append(heads * seconds)
    return found
