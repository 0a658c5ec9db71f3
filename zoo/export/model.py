"""A model as two torch.export programs of its weights, and back."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.export.files import Weights, read_document, read_export, write_export
from zoo.kernels.devices import usable_device
from zoo.models.decoder import Decoder

__all__ = ["ExportedModel", "export_model", "load_exported"]


class _Prefill(nn.Module):
    """`Decoder.prefill` with the state as a flat list of tensors."""

    def __init__(self, model: Decoder, spec: Any) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, tokens: Tensor, lengths: Tensor, parts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        logits, state = self.model.prefill(tokens, _pytree.tree_unflatten(parts, self.spec), lengths)
        return logits, _pytree.tree_leaves(state)


class _Decode(nn.Module):
    """`Decoder.step` with the state as a flat list of tensors, written in place."""

    def __init__(self, model: Decoder, spec: Any) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, tokens: Tensor, parts: list[Tensor]) -> Tensor:
        return self.model.step(tokens, _pytree.tree_unflatten(parts, self.spec))


class _OfWeights(nn.Module):
    """A module as a function of its weights, which are then arguments of its program and no part of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module,)  # in a tuple, so that its weights are not this module's

    def forward(self, weights: Weights, *arguments: Any) -> Any:
        return torch.func.functional_call(self._held[0], weights, arguments)


def export_model(model: Decoder, folder: Path | str, *, batch_size: int = 1, max_len: int = 1024) -> None:
    """Write a model's prefill and decode step to a folder, for `batch_size` rows and any prompt length.

    Args:
        model: in evaluation; its parameters' device and dtype are those of the programs.
        folder: made if it is not there; an export that it holds is replaced whole, or stays whole.
        batch_size: rows, which are fixed.
        max_len: tokens that a softmax cache holds, and the longest prompt.

    Raises:
        InputError: `batch_size` or `max_len` is out of range, or a file cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, was {batch_size}")
    if max_len < 4:
        raise InputError(f"max_len: expected at least 4, was {max_len}")
    device = next(model.parameters()).device
    parts, spec = _pytree.tree_flatten(model.decoding_state(batch_size, max_len=max_len))
    tokens = torch.zeros(batch_size, 3, dtype=torch.int64, device=device)
    lengths = torch.full((batch_size,), 3, device=device)
    length = torch.export.Dim("length", min=2, max=max_len)
    prefill, decode = _Prefill(model, spec), _Decode(model, spec)
    held = sorted((*prefill.named_parameters(), *prefill.named_buffers()))
    weights = {name: x.detach().contiguous() for name, x in held}
    with torch.no_grad():
        programs = {
            "prefill": torch.export.export(
                _OfWeights(prefill),
                (weights, tokens, lengths, parts),
                dynamic_shapes={
                    "weights": dict.fromkeys(weights),
                    "arguments": ({1: length}, None, [None] * len(parts)),
                },
                prefer_deferred_runtime_asserts_over_guards=True,
            ),
            "decode": torch.export.export(_OfWeights(decode), (weights, tokens[:, 0], parts)),
        }
    described = [{"shape": list(part.shape), "dtype": str(part.dtype).removeprefix("torch.")} for part in parts]
    document = {"batch_size": batch_size, "max_len": max_len, "device": device.type, "state": described}
    for program in programs.values():
        program.example_inputs = None  # the weights again, pickled
    write_export(Path(folder), document, weights, programs)


class ExportedModel:
    """A model that was exported: `prefill`, `step` and `init_state` as `Decoder` has them, for a fixed batch.

    The state is a flat list of tensors.
    """

    def __init__(
        self, programs: Mapping[str, nn.Module], weights: Weights, state: Sequence[tuple[list[int], torch.dtype]]
    ) -> None:
        self._programs, self._weights, self._state = programs, weights, tuple(state)

    def init_state(self, *, device: torch.device | str | None = None) -> list[Tensor]:
        """The state before the first token."""
        place = usable_device(device)
        return [torch.zeros(shape, dtype=dtype, device=place) for shape, dtype in self._state]

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: list[Tensor], lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits after each row's last real token `[B, vocab]`, and the state; `tokens [B, T]`, `lengths [B]`."""
        if tokens.shape[1] == 1:  # the programs take two at least, and padding never enters a state
            tokens = F.pad(tokens, (0, 1))
        logits, after = self._programs["prefill"](self._weights, tokens, lengths, state)
        return logits, list(after)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: list[Tensor]) -> Tensor:
        """Logits `[B, vocab]` after one token a row, `tokens [B]`; the state is written in place."""
        logits = self._programs["decode"](self._weights, tokens, state)
        assert isinstance(logits, Tensor)
        return logits


def load_exported(folder: Path | str, *, trusted: bool = False) -> ExportedModel:
    """Load what `export_model` wrote.

    Args:
        folder: of an export.
        trusted: say True for a folder of your own, or of someone whom you would let run code here. A program is code:
            reading one evaluates expressions and unpickles constants that it brings along.

    Raises:
        InputError: the folder is not one, not `trusted`, of another format, or its bytes are not those written.
    """
    folder = Path(folder)
    read_document(folder)
    if not trusted:
        raise InputError(
            f"trusted: {folder} holds programs, which can do what you can; say trusted=True if you know who wrote them"
        )
    document, programs, weights = read_export(folder)
    modules = {name: torch.export.load(io.BytesIO(content)).module() for name, content in programs.items()}
    state = [(part["shape"], getattr(torch, part["dtype"])) for part in document["state"]]
    return ExportedModel(modules, weights, state)
