"""The files of an export: whole or absent, and checked by the hashes of their bytes.

Files have names of their own bytes, so that a new export stands beside the one before until the document that names
them is replaced, which is one step for the file system.
"""

import io
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from zoo.errors import InputError
from zoo.reading import hash_document, hash_file, hash_of, read_regular
from zoo.report.files import replace_file, sync_file, sync_folder, writing

__all__ = ["Weights", "read_document", "read_export", "write_export"]

_FORMAT = 2
_DOCUMENT = "model.json"
_FILE = re.compile(r"(?:prefill|decode|weights)-[0-9a-f]{16}\.(?:pt2|safetensors)")

Weights = dict[str, Tensor]


def write_export(
    folder: Path, document: dict[str, Any], weights: Weights, programs: Mapping[str, torch.export.ExportedProgram]
) -> None:
    """Write files under names that nothing has yet, then the document that names them, then delete what it replaced."""
    with writing(folder, InputError):
        folder.mkdir(parents=True, exist_ok=True)
    before = _files_of(folder)
    files: dict[str, dict[str, str]] = {}
    try:
        _add_weights(folder, weights, files)
        for name, program in programs.items():
            content = io.BytesIO()  # torch aborts the process where it cannot write a file
            torch.export.save(program, content)
            digest = hash_of(content.getbuffer())
            files[name] = {"file": f"{name}-{digest[:16]}.pt2", "sha256": digest}
            replace_file(folder / files[name]["file"], content.getbuffer(), InputError)
        whole = {"format": _FORMAT, **document, "files": files}
        whole["sha256"] = hash_document(whole)
        replace_file(folder / _DOCUMENT, (json.dumps(whole, indent=1) + "\n").encode(), InputError)
    finally:
        for leftover in (before | {each["file"] for each in files.values()}) - _files_of(folder):
            (folder / leftover).unlink(missing_ok=True)


def _add_weights(folder: Path, weights: Weights, files: dict[str, dict[str, str]]) -> None:
    partial = folder / f".{secrets.token_hex(8)}.partial"
    with writing(folder, InputError):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            safetensors.torch.save_file(weights, partial)
            partial.chmod(mode)  # whoever may read the programs may read these
            sync_file(partial)
            digest = hash_file(partial)
            files["weights"] = {"file": f"weights-{digest[:16]}.safetensors", "sha256": digest}
            partial.rename(folder / files["weights"]["file"])
            sync_folder(folder)
        finally:
            partial.unlink(missing_ok=True)


def _files_of(folder: Path) -> set[str]:
    """The files that a folder's document names, whatever else there is."""
    try:
        named = json.loads(read_regular(folder / _DOCUMENT))["files"].values()
        return {each["file"] for each in named if _FILE.fullmatch(each["file"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, bytes], Weights]:
    """Return a folder's document, its programs' bytes by name and the weights, once all are found as they were written.

    Raises:
        InputError: one of them cannot be read or is damaged, or this is no export of this format.
    """
    document = read_document(folder)
    files = {name: (folder / each["file"], each["sha256"]) for name, each in document["files"].items()}
    weights, expected = files.pop("weights")
    programs = {}
    for name, (path, claimed) in files.items():
        with _reading(path):
            programs[name] = read_regular(path)
        _check(path, hash_of(programs[name]) == claimed)
    with _reading(weights):
        _check(weights, hash_file(weights) == expected)
        found = safetensors.torch.load_file(weights, document["device"])
    return document, programs, dict(sorted(found.items()))


def read_document(folder: Path) -> dict[str, Any]:
    """Return what `model.json` says, if it is as it was written.

    Raises:
        InputError: it is damaged, or this is no export of this format.
    """
    try:
        document = json.loads(read_regular(folder / _DOCUMENT))
        found, claimed = document["format"], document.pop("sha256", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}: expected a folder that export_model wrote, with a {_DOCUMENT}") from error
    if found != _FORMAT:
        raise InputError(f"{folder}: expected format {_FORMAT}, was {found!r}; export the model again")
    _check(folder / _DOCUMENT, hash_document(document) == claimed)
    assert isinstance(document, dict)
    return document


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _check(path: Path, sound: bool) -> None:
    if not sound:
        raise InputError(f"{path}: is damaged: its bytes are not those that were written")
