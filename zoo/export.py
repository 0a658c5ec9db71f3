"""Models as torch.export programs: reading a prompt and decoding, without the code that built them.

A folder holds `prefill.pt2`, `decode.pt2` and `model.json`, which says what the state looks like. Loading needs this
package for its ops, and neither the recipe nor a checkpoint.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from zoo.errors import InputError
from zoo.models.decoder import Decoder
from zoo.reading import read_regular

__all__ = ["ExportedModel", "export_model", "load_exported"]

_FORMAT = 1


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


def export_model(model: Decoder, folder: Path | str, *, batch_size: int = 1, max_len: int = 1024) -> None:
    """Write a model's prefill and decode step to a folder, for `batch_size` rows and any prompt length.

    Args:
        model: in evaluation; its parameters' device and dtype are those of the programs.
        folder: made if it is not there; files of the same names are replaced.
        batch_size: rows, which are fixed.
        max_len: tokens that a softmax cache holds, and the longest prompt.

    Raises:
        InputError: `batch_size` or `max_len` is out of range.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, was {batch_size}")
    if max_len < 4:
        raise InputError(f"max_len: expected at least 4, was {max_len}")
    device = next(model.parameters()).device
    parts, spec = _pytree.tree_flatten(model.init_state(batch_size, max_len=max_len))
    tokens = torch.zeros(batch_size, 3, dtype=torch.int64, device=device)
    lengths = torch.full((batch_size,), 3, device=device)
    length = torch.export.Dim("length", min=2, max=max_len)
    with torch.no_grad():
        prefill = torch.export.export(
            _Prefill(model, spec),
            (tokens, lengths, parts),
            dynamic_shapes=({1: length}, None, [None] * len(parts)),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        decode = torch.export.export(_Decode(model, spec), (tokens[:, 0], parts))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(prefill, folder / "prefill.pt2")
    torch.export.save(decode, folder / "decode.pt2")
    described = [{"shape": list(part.shape), "dtype": str(part.dtype).removeprefix("torch.")} for part in parts]
    document = {"format": _FORMAT, "batch_size": batch_size, "max_len": max_len, "state": described}
    (folder / "model.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class ExportedModel:
    """A model that was exported: `prefill`, `step` and `init_state` as `Decoder` has them, for a fixed batch.

    The state is a flat list of tensors.
    """

    def __init__(self, prefill: nn.Module, decode: nn.Module, state: Sequence[tuple[list[int], torch.dtype]]) -> None:
        self._prefill, self._decode, self._state = prefill, decode, tuple(state)

    def init_state(self, *, device: torch.device | str | None = None) -> list[Tensor]:
        """The state before the first token."""
        return [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in self._state]

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: list[Tensor], lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits after each row's last real token `[B, vocab]`, and the state; `tokens [B, T]`, `lengths [B]`."""
        if tokens.shape[1] == 1:  # the programs take two at least, and padding never enters a state
            tokens = F.pad(tokens, (0, 1))
        logits, after = self._prefill(tokens, lengths, state)
        return logits, list(after)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: list[Tensor]) -> Tensor:
        """Logits `[B, vocab]` after one token a row, `tokens [B]`; the state is written in place."""
        logits = self._decode(tokens, state)
        assert isinstance(logits, Tensor)
        return logits


def load_exported(folder: Path | str) -> ExportedModel:
    """Load what `export_model` wrote.

    Raises:
        InputError: the folder is not one, or of another format.
    """
    folder = Path(folder)
    try:
        document = json.loads(read_regular(folder / "model.json"))
        state = [(part["shape"], getattr(torch, part["dtype"])) for part in document["state"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}: expected a folder that export_model wrote, with a model.json") from error
    if document.get("format") != _FORMAT:
        raise InputError(f"{folder}: expected format {_FORMAT}, was {document.get('format')}")
    programs = [torch.export.load(folder / name).module() for name in ("prefill.pt2", "decode.pt2")]
    return ExportedModel(programs[0], programs[1], state)
