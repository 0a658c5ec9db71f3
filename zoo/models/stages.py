"""A model whose layers stand on several processes, for pipelines of torch.distributed.pipelining."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from zoo.blocks.window import Shared, open_window
from zoo.errors import ConfigError, InputError
from zoo.kernels.power import values_unchecked
from zoo.models.decoder import Decoder

__all__ = ["Stage"]

_SHARING = ("rwkv7", "hgrn2")
"""Mixers whose layers read what an earlier one left."""


class Stage(nn.Module):
    """Consecutive layers of a model, with the embeddings before its first and the norm and head behind its last.

    It is the submodule of a `PipelineStage`, whose schedule takes `loss` as its `loss_fn`. Parameters are called as in
    the whole model, behind `model.`, so that those of all stages together are its state dict.

    Args:
        model: the same on every process; it loses what other stages have, and is not to be called any more.
        count: of stages, at most the model's layers.
        index: of this stage, from 0.

    Raises:
        ConfigError: the model cannot be cut.
        InputError: there are more stages than layers, or no such stage.
    """

    def __init__(self, model: Decoder, count: int, index: int) -> None:
        super().__init__()
        layers = model.config.layers
        if not 0 <= index < count <= layers:
            raise InputError(f"index, count: expected one of at most {layers} stages, was {index} of {count}")
        if count > 1:
            _check(model)
        own = range(index * layers // count, (index + 1) * layers // count)
        model.blocks = nn.ModuleDict({str(layer): model.blocks[layer] for layer in own})  # type: ignore[assignment]
        self.is_first, self.is_last = index == 0, index == count - 1
        if not self.is_first:
            model.token_embedding = model.embedding_norm = model.position_embedding = None  # type: ignore[assignment]
        if not self.is_last:
            model.norm = model.head = None  # type: ignore[assignment]
        self.model = model
        self._shapes: set[torch.Size] = set()

    def forward(self, x: Tensor, resets: Tensor | None = None) -> Tensor:
        """Return the residual stream `[B, T, M]` behind this stage.

        Args:
            x: tokens `[B, T]` of the first stage, else what the one before returned.
            resets: `[B, T]` bool, as of `Decoder.loss`; every stage has to be given them.
        """
        # At the first call of a shape a schedule asks a later stage for shapes, and gives it memory as it finds it.
        asks = not self.is_first and x.shape not in self._shapes
        self._shapes.add(x.shape)
        with values_unchecked() if asks else nullcontext():
            return self._run(x, resets)

    def _run(self, x: Tensor, resets: Tensor | None) -> Tensor:
        window = open_window(x, None, lengths=None, resets=resets, return_state=False)
        if self.is_first:
            x = self.model._embed(x, window)
        for block in self.model.blocks.children():
            x, _, shared = block(x, None, window)
            window = window._replace(shared=Shared(shared))
        return x

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of `targets [B, T]`, as `Decoder.loss`, given what the last stage returned."""
        return self.model._loss_behind(x, targets, None)


def _check(model: Decoder) -> None:
    if model.head is None:
        raise ConfigError("model.tie_embeddings: must be false where layers stand on several processes, got true")
    name = next((config.name for config in model.mixer_configs if config.name in _SHARING), None)
    if name is not None:
        raise ConfigError(f"mixer: expected one whose layers stand by themselves in a pipeline, got {name}")
