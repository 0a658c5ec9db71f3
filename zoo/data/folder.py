"""Token shards in a folder with a manifest, written with constant memory and whole or not at all."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoo.data.encoding import encode_documents
from zoo.data.header import ShardHeader
from zoo.data.reading import CorpusReader
from zoo.data.sources import MANIFEST, MANIFEST_FORMAT
from zoo.data.tokenizer import TextTokenizer
from zoo.data.writing import ShardWriter, new_folder
from zoo.errors import CorpusError
from zoo.reading import hash_document, hash_file, read_regular
from zoo.report.files import replace_file, writing

__all__ = ["SHARD_TOKENS", "Facts", "Manifest", "input_facts", "read_manifest", "write_shards"]

SHARD_TOKENS = 2**28
"""Tokens after which another shard is begun: files of 512 MiB, or of 1 GiB for large vocabularies."""

_SIDES = ("train", "validation")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What was made of what; `manifest.json` beside the shards."""

    format: str
    """`mixer-zoo tokens 1`."""
    corpus: str
    """sha256 of the text before the split, which is that of the corpus that is read from the text itself."""
    tokenizer: str
    """sha256 of the tokenizer."""
    vocab_size: int
    settings: Facts
    """The options of `data` that the tokens depend on."""
    documents: int
    copies: int
    """Documents that are copies of an earlier one."""
    text_bytes: int
    shards: Sequence[Facts]
    """Name, side, tokens, documents, text_bytes and sha256 of each, in their order."""
    inputs: Sequence[Facts] = ()
    """Name, bytes and sha256 of the files that were read."""
    file_copies: int = 0
    """Files that are copies of an earlier one, in whatever documents they lie."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """`files` that are no text, and `documents` that are too short with the `text_bytes` in them."""

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens each side has."""
        return {side: sum(shard["tokens"] for shard in self.shards if shard["side"] == side) for side in _SIDES}


_FORMAT = f"{MANIFEST_FORMAT} 1"


def write_shards(
    reader: CorpusReader,
    tokenizer: TextTokenizer,
    folder: Path,
    facts: Facts,
    *,
    processes: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    also: Mapping[str, Path] = MappingProxyType({}),
) -> Manifest:
    """Tokenize documents into shards in a new folder, which is there whole or not at all.

    Args:
        reader: of the documents.
        tokenizer: theirs.
        folder: must not be there.
        facts: of the manifest: `settings`, `documents`, `copies`, `text_bytes`, and the rest where it is told.
        processes: that tokenize.
        shard_tokens: tokens after which another shard is begun.
        also: files to copy beside the shards, by their names there.

    Raises:
        CorpusError: a file cannot be read or written, for example because the disk is full.
        InUseError: another process writes the same folder.
    """
    with writing(folder, CorpusError), new_folder(folder) as partial:
        sides = [_Side(partial, side, tokenizer, shard_tokens) for side in _SIDES]
        try:
            for encoded in encode_documents(reader, tokenizer, processes):
                writer = sides[encoded.is_held_back].writer()
                writer.write(encoded.ids, encoded.byte_counts, encoded.text_bytes)
            shards = [shard for side in sides for shard in side.finish()]
        finally:
            for side in sides:
                side.discard()
        manifest = Manifest(
            format=_FORMAT,
            corpus=reader.hash,
            tokenizer=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            shards=shards,
            **facts,
        )
        for name, path in also.items():
            shutil.copyfile(path, partial / name)
        fields = asdict(manifest)
        content = json.dumps(fields | {"sha256": hash_document(fields)}, indent=1)
        replace_file(partial / MANIFEST, f"{content}\n".encode(), CorpusError)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        CorpusError: it is missing or damaged, or of a later version.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(read_regular(path))
        if fields.pop("sha256") != hash_document(fields) or fields["format"] != _FORMAT:
            raise ValueError
        return Manifest(**fields)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorpusError(f"{path}: is damaged or of another version; make the folder anew") from None


def input_facts(paths: Iterable[Path], advance: Callable[[int], None] = lambda _: None) -> list[Facts]:
    """Return name, bytes and sha256 of files.

    Raises:
        CorpusError: one cannot be read.
    """
    facts = []
    for path in paths:
        try:
            size = path.stat().st_size
            facts.append({"name": path.as_posix(), "bytes": size, "sha256": hash_file(path)})
        except OSError as error:
            raise CorpusError(f"data.source: cannot read {str(path)!r}: {error.strerror}") from error
        advance(size)
    return facts


class _Side:
    """The shards of training or of validation tokens."""

    def __init__(self, folder: Path, side: str, tokenizer: TextTokenizer, shard_tokens: int) -> None:
        self._folder, self._side, self._tokenizer, self._shard_tokens = folder, side, tokenizer, shard_tokens
        self._writer: ShardWriter | None = None
        self._shards: list[Facts] = []

    def writer(self) -> ShardWriter:
        """Return the shard that is being written."""
        if self._writer is not None and self._writer.tokens >= self._shard_tokens:
            self._end_shard(self._writer)
        if self._writer is None:
            path = self._folder / f"{self._side}-{len(self._shards):05d}.bin"
            counted = self._side == "validation" and not self._tokenizer.knows_bytes
            self._writer = ShardWriter(path, self._tokenizer, counted=counted)
        return self._writer

    def finish(self) -> list[Facts]:
        """End the last shard and return what is known of all."""
        if self._writer is not None:
            self._end_shard(self._writer)
        return self._shards

    def discard(self) -> None:
        """Remove what is not finished."""
        if self._writer is not None:
            self._writer.discard()

    def _end_shard(self, writer: ShardWriter) -> None:
        header: ShardHeader = writer.finish()
        self._shards.append({
            "name": writer.path.name, "side": self._side, "tokens": header.tokens, "documents": header.documents,
            "text_bytes": header.text_bytes, "sha256": header.content.hex(),
        })  # fmt: skip
        self._writer = None
