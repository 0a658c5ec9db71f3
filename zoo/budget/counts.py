"""FLOPs of one token and bytes of one sequence's past, exact and without allocating anything.

Counted is what runs, as contractions in which a multiply-add is 2:

- weights: `tm,mn->tn` for every linear layer and for the head, tied or not, so 2 a weight. Biases, norms, embeddings
  that are looked up and activations are pointwise and left out, as is usual.
- state: what each mixer says that mixing along time costs (`Mixer.flops`), the mean over the tokens of one sequence.

torch.utils.flop_counter counts the same for linear layers, head and power attention. It differs for softmax attention:
`scaled_dot_product_attention` counts as the full square of queries and keys where half of it is masked, and its fused
kernel on the CPU does not count at all. Here a query counts with the keys that it sees, on average (T + 1) / 2 of T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo.accounting import layer_mixers
from zoo.blocks.gate import RetentionGate
from zoo.builder import build
from zoo.errors import InputError
from zoo.kernels.contractions import contraction_flops
from zoo.limits import LONGEST
from zoo.models.decoder import Decoder
from zoo.recipe import Recipe
from zoo.states import any_state, state_bytes

__all__ = ["Budget", "budgets", "check_contexts", "measure", "weight_flops"]


@dataclass(frozen=True)
class Budget:
    """The cost of a model at one context."""

    context: int
    """Tokens of one sequence."""
    weight_flops: int
    """Forward FLOPs of one token in linear layers and head, whatever the context."""
    state_flops: float
    """Forward FLOPs of one token in mixing along time, the mean over the sequence."""
    state_bytes: int
    """Bytes of one sequence's state while decoding, with room for the context."""

    @property
    def ratio(self) -> float:
        """The weight-state FLOP ratio."""
        return self.weight_flops / self.state_flops

    @property
    def forward_flops(self) -> float:
        """FLOPs of one token in the forward pass."""
        return self.weight_flops + self.state_flops

    @property
    def training_flops(self) -> float:
        """FLOPs of one token forward and backward, counted as three forward passes."""
        return 3 * self.forward_flops


def budgets(recipe: Recipe, contexts: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Budget, ...]:
    """Return what the model of `recipe` costs at each of `contexts`.

    Learned positions set no limit here: beyond their reach the count is that of the same model with more of them.

    Args:
        recipe: built on the meta device, so that its size does not matter.
        contexts: in tokens.
        dtype: of the parameters and of cached keys and values; running sums are float32 whatever this says.

    Raises:
        ConfigError: the mixer does not fit the model.
        InputError: no context, or one below 1.
    """
    check_contexts(contexts)
    model = build(recipe, device="meta", dtype=dtype)
    return tuple(measure(model, context) for context in contexts)


def measure(model: Decoder, context: int, dtype: torch.dtype | None = None) -> Budget:
    """Return what a model on any device costs; its state is made on the meta device.

    Args:
        model: of any size.
        context: in tokens.
        dtype: of cached keys and values, the parameters' by default.

    Raises:
        InputError: a context below 1.
    """
    check_contexts([context])
    state = any_state(model, context, dtype)
    mixed = sum(mixer.flops(context) for mixer in layer_mixers(model))
    return Budget(context, weight_flops(model), mixed / context, state_bytes(state))


def weight_flops(model: Decoder) -> int:
    """Return the forward FLOPs of one token in all linear layers and the head."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear | RetentionGate)]
    if model.head is None:
        matrices.append(model.token_embedding.weight)
    return sum(contraction_flops("tm,nm->tn", (1, matrix.shape[1]), tuple(matrix.shape)) for matrix in matrices)


def check_contexts(contexts: Sequence[int]) -> None:
    """Raise `InputError` for no context at all, for one below 1, and for one beyond what sizes of tensors can say."""
    if not contexts or min(contexts) < 1 or max(contexts) > LONGEST:
        raise InputError(f"contexts: expected numbers of tokens from 1 to {LONGEST:,}, was {list(contexts)}")
