"""A pre-norm decoder: embeddings, blocks of a mixer and a feed-forward layer, a head; GPT-2 and Llama are configs."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_progress, check_sequence, describe, values_at_hand
from zoo.blocks.earlier import check_rollback, take_back
from zoo.blocks.gate import RetentionGate
from zoo.blocks.layer import Room
from zoo.blocks.linear import is_plain_linear
from zoo.blocks.norms import make_norm
from zoo.blocks.window import Shared, Token, Window, document_positions, open_token, open_window
from zoo.errors import ConfigError, InputError
from zoo.kernels.devices import usable_device
from zoo.kernels.linear_cross_entropy import (
    check_targets,
    linear_cross_entropy,
    logits_cross_entropy,
    plain_cross_entropy,
)
from zoo.kernels.sequence import SequenceGroup, at_the_end, gather
from zoo.kernels.targets import IGNORED
from zoo.kernels.token_scores import TokenScores, linear_scores, logits_scores
from zoo.mixers import Mixer, MixerConfig
from zoo.models.block import Block
from zoo.models.identity import CompiledByItself
from zoo.models.initialization import draw_seed, initialize, initialize_rwkv7
from zoo.models.sharding import check_gathered
from zoo.recipe.model import DecoderConfig
from zoo.recipe.training import Checkpointing

__all__ = ["MOST_CLASSES", "Decoder", "DecoderOutput", "DecoderState"]

MOST_CLASSES = 4096
"""The largest vocabulary whose logits a CPU makes all at once: they are left to the compiler, which fuses what follows.

By the vocabulary, not by the number of logits, which would compile once more for long sequences.
"""


class DecoderState(NamedTuple):
    """The states of each block's layers, and how far all of them are.

    `position [B]` int64 counts the tokens seen, and `start [B]` int64 those of them before the current document.
    """

    layers: tuple[Any, ...]
    position: Tensor
    start: Tensor


class DecoderOutput(NamedTuple):
    """`logits [B, T, vocab]`, and the state after the last token, or None unless it was asked for."""

    logits: Tensor
    state: DecoderState | None


class Decoder(CompiledByItself):
    """A language model over token ids.

    Args:
        config: sizes and style.
        mixer_configs: the mixer of each layer, all alike or not (a hybrid).

    Raises:
        ConfigError: there is not one mixer a layer, or a mixer's heads do not fit the model.
    """

    compiled_methods = ("forward", "loss", "score", "prefill", "step")

    def __init__(self, config: DecoderConfig, mixer_configs: Sequence[MixerConfig]) -> None:
        super().__init__()
        seed = draw_seed()  # before layers draw anything of their own, which on the meta device they do not
        if len(mixer_configs) != config.layers:
            raise ConfigError(f"mixers: expected one for each of {config.layers} layers, got {len(mixer_configs)}")
        self.config = config
        self.group: SequenceGroup | None = None
        self.mixer_configs = tuple(mixer_configs)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.embedding_norm = None
        if config.embedding_norm:
            self.embedding_norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.position_embedding = nn.Embedding(config.max_positions, config.width) if learned else None
        self.blocks = nn.ModuleList(Block(config, mixer, layer) for layer, mixer in enumerate(mixer_configs))
        self.norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, config.head_bias)
        self.reset_parameters(seed=seed)

    def reset_parameters(self, *, seed: int | None = None, part: str = "") -> None:
        """Draw parameters anew (see `zoo.models.initialization`), for example after a build on the meta device.

        Args:
            seed: with the names of modules it determines all that is drawn; None takes one from torch's generator.
            part: the name of the submodule whose parameters are drawn, for a model that is made piece by piece.
        """
        seed = draw_seed() if seed is None else seed
        writes = self.config.layers * (1 if self.config.feed_forward == "none" else 2)
        initialize(self, self.config.initializer_range, writes, seed=seed, part=part)
        if self.config.initialization == "rwkv7":
            embedding = self.token_embedding if part in ("", "token_embedding") else None
            initialize_rwkv7(embedding, self.head if part in ("", "head") else None, seed=seed)

    def checkpoint(self, mode: Checkpointing) -> None:
        """Choose what layers keep for the backward pass from now on; see `zoo.recipe.training.Checkpointing`."""
        for module in self.modules():
            if isinstance(module, Block):
                module.checkpointing = mode
            elif isinstance(module, Mixer):
                module.keep_states = mode != "selective"  # they take as much as the outputs that are kept

    def share_sequences(self, group: SequenceGroup) -> None:
        """From now on take this process's share `[B, T / P]` of each sequence's tokens, targets and resets, and return
        what is of it. All processes call `forward`, `loss`, `score` or `prefill` together, with the same states and
        lengths, which are those of whole sequences; so are the states that are returned, the same on all of them.

        Raises:
            ConfigError: a layer does not run so.
        """
        for config, block in zip(self.mixer_configs, self._blocks(), strict=True):
            if block.halo is None:
                raise ConfigError(
                    f"training.parallel.context: must be 1 with mixer {config.name}, which takes whole sequences, "
                    f"got {group.size}"
                )
        self.group = group

    @property
    def halo(self) -> int:
        """Tokens that a share of a sequence must have at least: so far the layers look back."""
        return max(1, *(block.halo or 0 for block in self._blocks()))

    def forward(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> DecoderOutput:
        """Return logits for the token after each of `tokens [B, T]` int64, `[B, T, vocab]`.

        Args:
            state: what `init_state` or an earlier call returned; None starts afresh.
            return_state: also return the state after the last token.
            lengths: `[B]` integers: only the first `lengths[b]` tokens of row `b` are real; what the padding on the
                right gives is undefined, and it never enters the state.
            resets: `[B, T]` bool: a token marked True starts a document and sees nothing before it.

        Raises:
            InputError: tokens of another dtype, shape or vocabulary, a document longer than learned positions reach, or
                a state of another model or batch size.
        """
        x, state = self._hidden(tokens, state, lengths=lengths, resets=resets, return_state=return_state)
        return DecoderOutput(self._logits(x), state)

    def loss(
        self, tokens: Tensor, targets: Tensor, *, resets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross-entropy in nats, 0-d float32, of `targets` given `tokens`, both `[B, T]`.

        Logits of a large vocabulary are never all held at once, so that a long context does not need room for them.
        Of shares of sequences it is the losses' sum, divided by what a process has to divide by on average: the mean
        over processes is that over all their targets.

        Args:
            targets: int64; those of -100 count for nothing, such as a prompt's. The mean over none is 0.
            weights: `[B, T]` floating, at least 0: what each target counts for in the mean; by default 1.

        Raises:
            InputError: as `forward`; targets or weights of another shape or dtype, or out of range.
        """
        self._check_targets(tokens, targets, weights)
        x, _ = self._hidden(tokens, resets=resets)
        return self._loss_behind(x, targets, weights)

    def _loss_behind(self, x: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The loss given the residual stream after all blocks, `[B, T, M]`."""
        x = self._normed(x).flatten(0, 1)
        targets, weights = targets.flatten(), None if weights is None else weights.flatten()
        weight = self._head_weight
        if weight is None:
            loss = logits_cross_entropy(self._head(x), targets, weights)
        else:
            in_parts = x.is_cuda or weight.shape[0] > MOST_CLASSES
            cross_entropy = linear_cross_entropy if in_parts else plain_cross_entropy
            loss = cross_entropy(x, weight, targets, weights)
        return (loss if self.group is None else loss * _share_of_targets(targets, weights, self.group)).float()

    @torch.no_grad()
    def score(self, tokens: Tensor, targets: Tensor, *, resets: Tensor | None = None) -> TokenScores:
        """Return the loss of each of `targets [B, T]` given `tokens [B, T]`, and whether the likeliest token was right.

        As `loss`, but token by token, both `[B, T]`, and without gradients; where targets are -100, 0 and False.

        Raises:
            InputError: as `loss`.
        """
        self._check_targets(tokens, targets, None)
        x, _ = self._hidden(tokens, resets=resets)
        x = self._normed(x).flatten(0, 1)
        weight = self._head_weight
        if weight is None:
            scores = logits_scores(self._head(x), targets.flatten())
        else:
            scores = linear_scores(x, weight, targets.flatten())
        return TokenScores(*(score.view_as(targets) for score in scores))

    def prefill(self, tokens: Tensor, state: DecoderState, lengths: Tensor) -> tuple[Tensor, DecoderState]:
        """Like `forward`, but return the logits only of each row's last real token, `[B, vocab]`, and the state.

        There must be such a token: `lengths [B]` is from 1 to T, or to P T where P processes have a sequence together.
        """
        x, after = self._hidden(tokens, state, lengths=lengths, return_state=True)
        assert after is not None
        row, last, T = torch.arange(x.shape[0], device=x.device), lengths - 1, x.shape[1]
        if self.group is None:
            return self._next_logits(x[row, last]), after
        ends = last // T == self.group.rank
        return self._next_logits(at_the_end(x[row, last % T], self.group, ends)), after

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Take one token a row, `tokens [B]`, and return the logits for the next one, `[B, vocab]`.

        Writes the state in place, at fixed addresses, and runs without gradients.

        Raises:
            InputError: as `forward`.
        """
        self._check_tokens(tokens, "[B]")
        self.check_state(state, tokens)
        x, _ = self._run(tokens, state.layers, open_token(state))
        state.position.add_(1)
        return self._next_logits(x)

    def init_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> DecoderState:
        """Return the state before the first token of `batch_size` sequences.

        Args:
            max_len: tokens that a softmax cache must hold; where positions are learned, all of them by default.
            device: the parameters' by default.
            dtype: of cached keys and values, the parameters' by default; sums over the past are float32.

        Raises:
            InputError: a layer needs `max_len` and there is no default.
        """
        return self._empty_state(Room(batch_size, max_len, usable_device(device), dtype))

    def decoding_state(
        self,
        batch_size: int,
        *,
        max_len: int | None = None,
        rollback: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> DecoderState:
        """Return the state before the first token that decoding takes least time from.

        It is what `init_state` returns, but that layers of power attention have recent tokens beside their sums: all of
        them as long as these are fewer bytes, and then those of the last few steps, which spares writing the sums.

        Args:
            max_len, device, dtype: as in `init_state`.
            rollback: how many tokens can be taken back at any time.

        Raises:
            InputError: as `init_state`; `rollback` is no number of tokens.
        """
        place = usable_device(device)
        return self._empty_state(Room.for_decoding(batch_size, max_len, place, dtype, rollback=rollback))

    @torch.no_grad()
    def rollback(self, state: DecoderState, tokens: int | Tensor) -> None:
        """Take back the last tokens of each row, so that they are as if they had never been; in place.

        Args:
            state: made by `decoding_state(rollback=...)`, which says how many there may be at any time; softmax
                attention takes back any number.
            tokens: how many, of all rows or `[B]` int64 of each; none that stands before the current document.

        Raises:
            InputError: it is no number of tokens, more than the state can take back, or than the document has, which is
                seen where it costs nothing.
        """
        self.check_state(state, state.position)
        found = (block.most_rollback(part) for block, part in zip(self._blocks(), state.layers, strict=True))
        most = min((most for most in found if most is not None), default=None)
        count = check_rollback(tokens, state.position - state.start, most)
        state.position.sub_(count)
        for part in (part for layers in state.layers for part in layers):
            take_back(part, state.position, count)

    def check_state(self, state: DecoderState, tokens: Tensor) -> None:
        """Check that a state is this model's, for the rows of `tokens [B, ...]` and on their device.

        Every entry point does before it computes anything. What has the same shapes is the same to it.

        Raises:
            InputError: in one line the part of the state, what it was and what it must be.
        """
        check_progress(state, DecoderState, tokens)
        if len(state.layers) != len(self.blocks):
            raise InputError(f"state: expected {len(self.blocks)} layers as in this model, was {len(state.layers)}")
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            block.check_state(layer, tokens)

    def num_parameters(self) -> int:
        """Return the number of parameters, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def capacity(self, state: DecoderState) -> int | None:
        """Return how many tokens a state can hold in all, which its caches say; None: any number."""
        found = (block.capacity(part) for block, part in zip(self._blocks(), state.layers, strict=True))
        return min((capacity for capacity in found if capacity is not None), default=None)

    def flops(self, tokens: int) -> int:
        """Return the forward FLOPs (a multiply-add is 2) of one sequence of `tokens`: linear layers, mixers, head."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear | RetentionGate)]
        weights = sum(module.weight.numel() for module in linear)
        if self.head is None:
            weights += self.token_embedding.weight.numel()
        return 2 * weights * tokens + sum(block.flops(tokens) for block in self._blocks())

    def _empty_state(self, room: Room) -> DecoderState:
        if room.max_len is None and self.position_embedding is not None:
            room = room._replace(max_len=self.config.max_positions)
        layers, weight = tuple(block.empty_state(room) for block in self._blocks()), self.token_embedding.weight
        return DecoderState(layers, room.no_tokens(weight), room.no_tokens(weight))

    def _hidden(
        self,
        tokens: Tensor,
        state: DecoderState | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, DecoderState | None]:
        """Return the residual stream after all blocks, `[B, T, M]`, and the state if asked for."""
        self._check_tokens(tokens, "[B, T]")
        check_sequence(tokens, lengths, resets, shares=1 if self.group is None else self.group.size)
        if state is not None:
            self.check_state(state, tokens)
        window = open_window(tokens, state, lengths=lengths, resets=resets, return_state=return_state, group=self.group)
        x, layers = self._run(tokens, (None,) * len(self.blocks) if state is None else state.layers, window)
        return x, DecoderState(layers, window.after, window.last_start) if return_state else None

    def _run(self, tokens: Tensor, states: tuple[Any, ...], window: Window | Token) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the residual stream after all blocks, `[..., M]`, and their states."""
        x, after = self._embed(tokens, window), []
        for block, state in zip(self.blocks, states, strict=True):
            x, state, shared = block(x, state, window)
            window = window._replace(shared=Shared(shared))
            after.append(state)
        return x, tuple(after)

    def _embed(self, tokens: Tensor, window: Window | Token) -> Tensor:
        """Return the embeddings of tokens, `[..., M]`."""
        x = self.token_embedding(tokens)
        if self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.position_embedding is None:
            return x
        positions = document_positions(window)
        self._check_positions(positions, None if isinstance(window, Token) else window.lengths)
        # The clamp keeps padding inside the table, and where positions go unchecked also a document that is too long.
        return x + self.position_embedding(positions.clamp(max=self.config.max_positions - 1))

    def _normed(self, x: Tensor) -> Tensor:
        """Return the last norm's output, divided by what logits are to be divided by."""
        normed: Tensor = self.norm(x)
        return normed if self.config.logits_scaling == 1 else normed / self.config.logits_scaling

    def _logits(self, x: Tensor) -> Tensor:
        return self._head(self._normed(x))

    def _head(self, x: Tensor) -> Tensor:
        logits: Tensor = F.linear(x, self.token_embedding.weight) if self.head is None else self.head(x)
        cap = self.config.logits_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _next_logits(self, x: Tensor) -> Tensor:
        """`[B, vocab]` for one token a row, `x [B, M]`.

        Made with the vocabulary in rows: a row of GPT-2's 50,257 logits is of no even number of bytes, and makes a GPU
        read the weights, which are all there is to read here, two bytes at a time.
        """
        x, weight = self._normed(x), self._head_weight
        return self._head(x) if weight is None else (weight @ x.mT).mT

    @property
    def _head_weight(self) -> Tensor | None:
        """The matrix that is all there is to the head; None where the head has to be called as a module."""
        if self.config.logits_cap is not None:
            return None
        if self.head is None:
            return self.token_embedding.weight
        return self.head.weight if is_plain_linear(self.head) else None

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _check_tokens(self, tokens: Tensor, layout: str) -> None:
        check_gathered(self, self.token_embedding.weight)
        if tokens.dim() != layout.count(",") + 1 or tokens.dtype not in (torch.int64, torch.int32):
            raise InputError(f"tokens: expected int64 {layout}, was {describe(tokens)}")
        vocab_size, limit = self.config.vocab_size, self.config.max_positions
        if self.position_embedding is not None and tokens.dim() == 2 and tokens.shape[1] > limit:
            raise InputError(f"tokens: expected at most {limit} at a time (max_positions), was {tokens.shape[1]}")
        if values_at_hand(tokens) and tokens.numel() and not (tokens.amin() >= 0 and tokens.amax() < vocab_size):
            raise InputError(f"tokens: expected 0 to {vocab_size - 1}, was {tokens.amin()} to {tokens.amax()}")

    def _check_targets(self, tokens: Tensor, targets: Tensor, weights: Tensor | None) -> None:
        if targets.shape != tokens.shape or targets.dtype != torch.int64:
            raise InputError(f"targets: expected int64 {list(tokens.shape)} as tokens, was {describe(targets)}")
        if weights is not None and (weights.shape != tokens.shape or not weights.is_floating_point()):
            raise InputError(f"weights: expected floating {list(tokens.shape)} as tokens, was {describe(weights)}")
        if values_at_hand(targets):
            check_targets(targets, self.config.vocab_size)
        if weights is not None and values_at_hand(weights) and not (weights >= 0).all():
            raise InputError(f"weights: expected 0 or more, was {weights.min():g}")

    def _check_positions(self, positions: Tensor, lengths: Tensor | None) -> None:
        """Check that the real ones among `positions` are in the table of learned positions."""
        if not values_at_hand(positions):
            return
        if lengths is not None:
            positions = positions[torch.arange(positions.shape[1]) < lengths[:, None]]
        limit = self.config.max_positions
        if positions.numel() and positions.amax() >= limit:
            raise InputError(
                f"tokens: expected documents of at most {limit} (max_positions), was {int(positions.amax()) + 1}"
            )


def _share_of_targets(targets: Tensor, weights: Tensor | None, group: SequenceGroup) -> Tensor:
    """What this process's targets count for together, over what those of a process do on average; 0-d."""
    counts = (targets != IGNORED).double()
    own = (counts if weights is None else counts * weights.detach()).sum()
    mean = gather(own, group).mean()
    return own / torch.where(mean == 0, 1, mean)
