"""A run that trains in milliseconds: the real loop, data, optimiser and files around a tiny model."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.data import ByteTokenizer, Corpus, DataConfig, TokenStream
from zoo.recipe import EvaluationConfig
from zoo.training import SilentProgress, TrainingConfig, TrainingResult
from zoo.training.distributed import Processes
from zoo.training.loop import Trainer
from zoo.training.objective import NextTokenLoss
from zoo.training.run import RunFolder

VOCABULARY = 257


class Output(NamedTuple):
    logits: Tensor


class TinyModel(nn.Module):
    """Predicts from the two last tokens; with tied embeddings, and dropout so that random numbers matter."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, tokens: Tensor, *, resets: Tensor | None = None) -> Output:
        x = self.embedding(tokens)
        before = x.roll(1, dims=1)
        x = x + (before if resets is None else before.masked_fill(resets[..., None], 0.0))
        for layer in self.layers:
            x = x + torch.tanh(layer(self.dropout(x)))
        return Output(self.head(self.norm(x)) * self.scale)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def init_state(self, batch_size: int, **_: object) -> Tensor:
        """The token before, of each row."""
        return torch.empty(batch_size, dtype=torch.int64, device="meta")

    def flops(self, tokens: int) -> int:
        return 2 * tokens * 8 * (8 + 8 + VOCABULARY)


class TinyRecipe(Config):
    """The parts of a recipe that the loop looks at."""

    name: str = "tiny"
    description: str = ""
    data: DataConfig = DataConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()


def make_corpus() -> Corpus:
    """A few documents of letters with some order in them."""
    generator = np.random.default_rng(0)
    steps = generator.integers(1, 4, size=6000)
    tokens = 97 + np.cumsum(steps) % 26
    tokens[::500] = 256
    tokenizer = ByteTokenizer()
    return Corpus(
        train=TokenStream.of(tokens[:5000], 256, name="training data"),
        validation=TokenStream.of(tokens[5000:], 256, name="validation data"),
        hash="0" * 64,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """See `make_corpus`."""
    return make_corpus()


@pytest.fixture
def tiny_recipe() -> Callable[..., TinyRecipe]:
    """A recipe of a dozen steps; keywords change its training."""

    def make(**changes: object) -> TinyRecipe:
        values: dict[str, object] = {
            "context_length": 8,
            "batch_size": 4,
            "steps": 12,
            "warmup_steps": 3,
            "learning_rate": 0.01,
            "evaluate_every": 5,
            "evaluation_tokens": 64,
            "checkpoint_every": 4,
            "log_every": 3,
            "seed": 1,
            "compile": False,
        }
        return TinyRecipe(training=TrainingConfig(**(values | changes)))

    return make


@pytest.fixture
def tiny_model() -> type[TinyModel]:
    return TinyModel


@pytest.fixture
def train_tiny(corpus: Corpus) -> Callable[..., TrainingResult]:
    """Train as `zoo.training.train` does, with a model of one's own."""

    def run(recipe: TinyRecipe, folder: Path, model: nn.Module | None = None, progress=None) -> TrainingResult:
        run_folder = RunFolder(folder)
        if run_folder.status() != "missing":
            run_folder.check(recipe)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.training.seed)
            model = TinyModel() if model is None else model
            processes = Processes(torch.device("cpu"))
            trainer = Trainer(NextTokenLoss(model), recipe, corpus, run_folder, processes, progress or SilentProgress())
            return trainer.run()

    return run


os_open = os.open


class FaultAt:
    """Raises `fault` at call number `at` of those that touch the disk, before it or after it took place.

    Args:
        also: more calls to count, as pairs of an owner and a name.
    """

    def __init__(self, monkeypatch, fault, at, after, also=()):
        self._calls, self._fault, self._at, self._after = 0, fault, at, after
        for owner, name in (
            (safetensors.torch, "save_file"),
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (os, "open"),
            (shutil, "rmtree"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (Path, "open"),
            *also,
        ):
            monkeypatch.setattr(owner, name, self._faulty(getattr(owner, name)))

    def _faulty(self, function):
        def call(*arguments, **keywords):
            self._calls += 1
            now = self._calls == self._at
            if now and not self._after:
                raise self._fault
            result = function(*arguments, **keywords)
            if now:
                if function is os_open:
                    os.close(result)
                elif hasattr(result, "close"):
                    result.close()
                raise self._fault
            return result

        return call


@pytest.fixture(scope="session")
def fault_at() -> type[FaultAt]:
    return FaultAt
