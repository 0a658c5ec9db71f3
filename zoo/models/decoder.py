"""A pre-norm decoder: embeddings, blocks of a mixer and a feed-forward layer, a head; GPT-2 and Llama are configs."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.checks import check_sequence, check_state, describe, values_at_hand
from zoo.blocks.norms import make_norm
from zoo.blocks.positions import advance, document_starts, token_positions
from zoo.errors import ConfigError, InputError
from zoo.kernels.linear_cross_entropy import linear_cross_entropy
from zoo.mixers import Mixer, MixerConfig
from zoo.models.block import Block
from zoo.models.initialization import initialize, initialize_rwkv7
from zoo.recipe.model import DecoderConfig
from zoo.recipe.training import Checkpointing

__all__ = ["MOST_CLASSES", "Decoder", "DecoderOutput", "DecoderState"]

MOST_CLASSES = 4096
"""The largest vocabulary whose logits a CPU makes all at once: they are left to the compiler, which fuses what follows.

By the vocabulary, not by the number of logits, which would compile once more for long sequences.
"""


class DecoderState(NamedTuple):
    """One mixer state a layer, and `position [B]` int64: the tokens seen of the current document."""

    layers: tuple[Any, ...]
    position: Tensor


class DecoderOutput(NamedTuple):
    """`logits [B, T, vocab]`, and the state after the last token, or None unless it was asked for."""

    logits: Tensor
    state: DecoderState | None


class Decoder(nn.Module):
    """A language model over token ids.

    Args:
        config: sizes and style.
        mixer_configs: the mixer of each layer, all alike or not (a hybrid).

    Raises:
        ConfigError: there is not one mixer a layer, or a mixer's heads do not fit the model.
    """

    def __init__(self, config: DecoderConfig, mixer_configs: Sequence[MixerConfig]) -> None:
        super().__init__()
        if len(mixer_configs) != config.layers:
            raise ConfigError(f"mixers: expected one for each of {config.layers} layers, got {len(mixer_configs)}")
        self.config = config
        self.mixer_configs = tuple(mixer_configs)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.embedding_norm = None
        if config.embedding_norm:
            self.embedding_norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.position_embedding = nn.Embedding(config.max_positions, config.width) if learned else None
        self.blocks = nn.ModuleList(Block(config, mixer, layer) for layer, mixer in enumerate(mixer_configs))
        self.norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew (see `zoo.models.initialization`), for example after a build on the meta device."""
        writes = self.config.layers * (1 if self.config.feed_forward == "none" else 2)
        initialize(self, self.config.initializer_range, writes)
        if self.config.initialization == "rwkv7":
            initialize_rwkv7(self.token_embedding, self.head)

    def checkpoint(self, mode: Checkpointing) -> None:
        """Choose what layers keep for the backward pass from now on; see `zoo.recipe.training.Checkpointing`."""
        for module in self.modules():
            if isinstance(module, Block):
                module.checkpointing = mode
            elif isinstance(module, Mixer):
                module.keep_states = mode != "selective"  # they take as much as the outputs that are kept

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
        x, state = self._hidden(tokens, state, return_state, lengths, resets)
        return DecoderOutput(self._logits(x), state)

    def loss(self, tokens: Tensor, targets: Tensor, *, resets: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy in nats, 0-d float32, of `targets` given `tokens`, both `[B, T]`.

        Logits of a large vocabulary are never all held at once, so that a long context does not need room for them.

        Raises:
            InputError: as `forward`.
        """
        x, _ = self._hidden(tokens, None, False, None, resets)
        x = self.norm(x).flatten(0, 1)
        weight = self._head_weight
        if x.is_cuda or weight.shape[0] > MOST_CLASSES:
            return linear_cross_entropy(x, weight, targets.flatten()).float()
        return F.cross_entropy(F.linear(x, weight).float(), targets.flatten())

    def prefill(self, tokens: Tensor, state: DecoderState, lengths: Tensor) -> tuple[Tensor, DecoderState]:
        """Like `forward`, but return the logits only of each row's last real token, `[B, vocab]`, and the state.

        There must be such a token: `lengths [B]` is from 1 to T.
        """
        x, after = self._hidden(tokens, state, True, lengths, None)
        assert after is not None
        row = torch.arange(x.shape[0], device=x.device)
        return self._next_logits(x[row, lengths - 1]), after

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Take one token a row, `tokens [B]`, and return the logits for the next one, `[B, vocab]`.

        Writes the state in place, at fixed addresses, and runs without gradients.

        Raises:
            InputError: as `forward`.
        """
        self._check_tokens(tokens, "[B]")
        self.check_state(state, tokens)
        x, first_values = self._embed(tokens, state.position), None
        for block, layer_state in zip(self._blocks(), state.layers, strict=True):
            x, first_values = block.step(x, first_values, layer_state)
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
        if max_len is None and self.position_embedding is not None:
            max_len = self.config.max_positions
        layers = tuple(
            block.init_state(batch_size, max_len=max_len, device=device, dtype=dtype) for block in self._blocks()
        )
        device = device or self.token_embedding.weight.device
        return DecoderState(layers, torch.zeros(batch_size, device=device, dtype=torch.int64))

    def check_state(self, state: DecoderState, tokens: Tensor) -> None:
        """Check that a state is this model's, for the rows of `tokens [B, ...]` and on their device.

        Every entry point does before it computes anything. What has the same shapes is the same to it.

        Raises:
            InputError: in one line the part of the state, what it was and what it must be.
        """
        check_state(state, DecoderState, tokens)
        if len(state.layers) != len(self.blocks):
            raise InputError(f"state: expected {len(self.blocks)} layers as in this model, was {len(state.layers)}")
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            block.check_state(layer, tokens)

    def num_parameters(self) -> int:
        """Return the number of parameters, a tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, tokens: int) -> int:
        """Return the forward FLOPs (a multiply-add is 2) of one sequence of `tokens`: linear layers, mixers, head."""
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        if self.head is None:
            weights += self.token_embedding.weight.numel()
        return 2 * weights * tokens + sum(block.mixer.flops(tokens) for block in self._blocks())

    def _hidden(
        self,
        tokens: Tensor,
        state: DecoderState | None,
        return_state: bool,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, DecoderState | None]:
        """Return the residual stream after all blocks, `[B, T, M]`, and the state if asked for."""
        self._check_tokens(tokens, "[B, T]")
        check_sequence(tokens, lengths, resets)
        if state is not None:
            self.check_state(state, tokens)
        position = None if state is None else state.position
        positions = token_positions(position, tokens.shape[1], tokens.device)
        starts = document_starts(positions, tokens.new_zeros(tokens.shape[0]), resets, lengths)

        x = self._embed(tokens, positions - starts[:, 1:], lengths)
        layers, first_values = [], None
        before = (None,) * len(self.blocks) if state is None else state.layers
        for block, layer_state in zip(self.blocks, before, strict=True):
            x, first_values, layer_state = block(x, first_values, layer_state, return_state, lengths, resets)
            layers.append(layer_state)
        after = (
            DecoderState(tuple(layers), advance(position, tokens, lengths) - starts[:, -1]) if return_state else None
        )
        return x, after

    def _embed(self, tokens: Tensor, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return embeddings of tokens at `positions` in their documents, both `[B]` or both `[B, T]`."""
        x = self.token_embedding(tokens)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.position_embedding is None:
            return x
        self._check_positions(positions, lengths)
        # The clamp keeps padding inside the table, and where positions go unchecked also a document that is too long.
        return x + self.position_embedding(positions.clamp(max=self.config.max_positions - 1))

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self._head_weight)

    def _next_logits(self, x: Tensor) -> Tensor:
        """`[B, vocab]` for one token a row, `x [B, M]`.

        Made with the vocabulary in rows: a row of GPT-2's 50,257 logits is of no even number of bytes, and makes a GPU
        read the weights, which are all there is to read here, two bytes at a time.
        """
        return (self._head_weight @ self.norm(x).mT).mT

    @property
    def _head_weight(self) -> Tensor:
        return self.token_embedding.weight if self.head is None else self.head.weight

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _check_tokens(self, tokens: Tensor, layout: str) -> None:
        if tokens.dim() != layout.count(",") + 1 or tokens.dtype not in (torch.int64, torch.int32):
            raise InputError(f"tokens: expected int64 {layout}, was {describe(tokens)}")
        vocab_size, limit = self.config.vocab_size, self.config.max_positions
        if self.position_embedding is not None and tokens.dim() == 2 and tokens.shape[1] > limit:
            raise InputError(f"tokens: expected at most {limit} at a time (max_positions), was {tokens.shape[1]}")
        if values_at_hand(tokens) and tokens.numel() and not (tokens.amin() >= 0 and tokens.amax() < vocab_size):
            raise InputError(f"tokens: expected 0 to {vocab_size - 1}, was {tokens.amin()} to {tokens.amax()}")

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
