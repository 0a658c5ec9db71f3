"""The models that are measured: a recipe with another mixer, and one of its training steps."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.bench.subjects import select
from zoo.builder import build, configure
from zoo.data import Batches, Corpus, load_corpus
from zoo.errors import InputError
from zoo.mixers import mixers
from zoo.recipe import Recipe
from zoo.training.objective import NextTokenLoss
from zoo.training.optimizer import autocast, autocast_dtype, build_optimizer, clip_gradients

__all__ = [
    "QUADRATIC", "TrainingStep", "check_mixers", "load_documents", "make_batches", "recipe_with", "softmax_backend",
]  # fmt: skip

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Tokens, targets and where documents start, `[B, T]`; None where they are not marked."""

_BACKENDS = {"softmax-cudnn": SDPBackend.CUDNN_ATTENTION, "softmax-flash": SDPBackend.FLASH_ATTENTION}
QUADRATIC = ("softmax", *_BACKENDS)
"""Mixers whose time is quadratic in the length."""
_BATCHES = 8  # of documents, in turn


def check_mixers(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of mixers, each once, or raise `InputError`; softmax with one of PyTorch's backends has a name."""
    return tuple(select("mixers", names, dict.fromkeys([*_BACKENDS, *mixers])))


def softmax_backend(mixer: str) -> AbstractContextManager[Any]:
    """Hold softmax attention to the backend that a mixer's name says."""
    return sdpa_kernel(_BACKENDS[mixer]) if mixer in _BACKENDS else nullcontext()


def recipe_with(recipe: Recipe, mixer: str) -> Recipe:
    """Return a recipe with another mixer; its own keeps the options it has."""
    name = "softmax" if mixer in _BACKENDS else mixer
    return recipe if recipe.mixers is None and recipe.mixer.name == name else configure(recipe, mixer=name)


def load_documents(recipe: Recipe) -> Corpus:
    """Return the data of a recipe, as training reads them, or raise `InputError` where the model lacks tokens."""
    corpus = load_corpus(recipe.data)
    if corpus.vocab_size > recipe.model.vocab_size:
        raise InputError(
            f"model.vocab_size: expected at least the {corpus.vocab_size} of the recipe's data, or undivided random "
            f"tokens (--documents one), was {recipe.model.vocab_size}"
        )
    return corpus


def make_batches(recipe: Recipe, corpus: Corpus | None, device: torch.device) -> list[Batch]:
    """Return batches on a device, of the length and size that the recipe's `training` section says.

    Args:
        recipe: of the model.
        corpus: whose first batches of training are returned; None: one batch of random tokens, not divided.
        device: where.

    Raises:
        CorpusError: the corpus is too short for the length.
    """
    training = recipe.training
    if corpus is None:
        torch.manual_seed(training.seed)
        shape = (training.batch_size, training.context_length)
        tokens, targets = (torch.randint(0, recipe.model.vocab_size, shape, device=device) for _ in range(2))
        return [(tokens, targets, None)]
    marked = corpus.train.separator is not None
    stream = Batches(corpus.train, training.batch_size, training.context_length, training.seed)
    batches = (tuple(tensor.to(device) for tensor in stream.batch(step)) for step in range(_BATCHES))
    return [(tokens, targets, resets if marked else None) for tokens, targets, resets in batches]


class TrainingStep:
    """Forward and backward pass, and the optimiser's step where asked for, as `zoo train` makes them.

    Args:
        recipe: its `training` section says precision and checkpointing.
        batches: what it sees, one a step, in turn.
        device: where the model is built, and the batches are.
        compiled: run through `torch.compile(fullgraph=True)`, for this length alone; layer by layer if the recipe says.
        optimize: also clip the gradients and let AdamW step.
    """

    def __init__(
        self, recipe: Recipe, batches: Sequence[Batch], device: torch.device, *, compiled: bool, optimize: bool
    ) -> None:
        torch.manual_seed(recipe.training.seed)
        self.recipe, self.batches, self.device = recipe, batches, device
        self.model = build(recipe, device=device)
        self.model.checkpoint(recipe.training.checkpointing)
        self._config = recipe.training
        self._autocast = autocast_dtype(self._config, device)
        self._objective = NextTokenLoss(self.model)
        if compiled:
            self._objective.compile_for(recipe.training)
        self._optimizer = build_optimizer(self.model, self._config) if optimize else None
        self._turns = cycle(batches)

    def forward(self) -> Tensor:
        """Return the loss, 0-d float32, with what the backward pass needs."""
        with autocast(self._autocast, self.device):
            return self._objective(*next(self._turns))

    def __call__(self) -> None:
        """Make one step; without an optimiser the gradients are dropped."""
        torch.autograd.backward(self.forward())
        if self._optimizer is not None:
            clip_gradients(self.model, self._config.clip_norm)
            self._optimizer.step()
        self.model.zero_grad(set_to_none=True)
