"""A corpus: text or shards, split by document into training and validation tokens."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.cache import cache_folder, kept
from zoo.data.documents import Documents
from zoo.data.encoding import encode_documents
from zoo.data.folder import Facts, Manifest, read_manifest, write_shards
from zoo.data.progress import telling
from zoo.data.reading import CorpusReader
from zoo.data.shards import Shard, hash_shards, open_shard, split_shards
from zoo.data.sources import find_files
from zoo.data.split import Survey
from zoo.data.stream import TokenStream
from zoo.data.tokenizer import RawTokens, TextTokenizer, Tokenizer, load_tokenizer
from zoo.errors import CorpusError
from zoo.reading import hash_document
from zoo.recipe.data import DataConfig
from zoo.report.numbers import size

__all__ = ["Corpus", "load_corpus", "facts_of", "open_source", "read_text", "tell_losses"]

_logger = logging.getLogger(__name__)

_IN_MEMORY = 2**25  # bytes of text, of which the tokens stay in memory
_WORTH_KEEPING = 2**22  # bytes of text that take a second to tokenize


@dataclass(frozen=True)
class Corpus:
    """Tokens to train and to validate on."""

    train: TokenStream
    validation: TokenStream
    hash: str
    """sha256 of the text (of the ids, for shards) before the split, as hexadecimal; paths do not enter it."""
    vocab_size: int
    """Every id is below it; a model's vocabulary is at least as large."""
    tokenizer: Tokenizer
    copies: int = 0
    """Documents that are copies of an earlier one; they fall on its side of the split. Not counted in shards."""


def load_corpus(config: DataConfig) -> Corpus:
    """Read, split and tokenize what `config` names.

    Text is read piece by piece. What a tokenizer.json makes of it is kept in a folder (`config.cache`) and not made
    anew; tokens of much text stay on disk, memory-mapped, and so do token shards. Shards are read through once, to
    check every id and to hash them.

    Raises:
        CorpusError: the source is missing, unreadable, empty or too small to split, mixes text and shards, or holds an
            id outside the vocabulary; or shards are of another tokenizer.
        ConfigError: the tokenizer cannot be loaded.
    """
    paths = find_files(config.source)
    if _are_shards(paths, config.source):
        return _load_shards(paths, config)
    if config.tokenizer == "none":
        raise CorpusError(f"data.tokenizer: 'none' is for *.bin token shards, but {config.source!r} is text")
    tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    tell_losses(config, tokenizer)
    documents = Documents(paths, config)
    with telling("reading text", None) as advance:
        survey = documents.survey(advance)
    text_bytes = sum(survey.sizes)
    is_kept = config.tokenizer != "bytes" and (config.cache is not None or text_bytes >= _WORTH_KEEPING)
    with telling("tokenizing", text_bytes) as advance:
        reader = CorpusReader(documents, survey, config.validation_fraction, advance)
        if is_kept and (corpus := _kept_corpus(config, reader, survey, tokenizer)) is not None:
            return corpus
        if text_bytes <= _IN_MEMORY:
            return _corpus_in_memory(reader, survey, tokenizer)
        return _corpus_in_temporary_files(config, reader, survey, tokenizer)


def open_source(config: DataConfig) -> Documents:
    """Return the documents of `config.source`, which may be anything but token shards.

    Raises:
        CorpusError: the source is missing, unreadable or holds no text.
    """
    paths = find_files(config.source)
    if _are_shards(paths, config.source):
        raise CorpusError(f"data.source: expected text, but {config.source!r} is token shards (*.bin)")
    return Documents(paths, config)


def read_text(source: str, encoding: str = "utf-8") -> list[bytes]:
    """Return the documents of `source`, which is what a recipe's `data.source` is, but for token shards, as UTF-8.

    All of them are in memory then; `open_source` reads them one after the other.

    Raises:
        CorpusError: the source is missing, unreadable or holds no text.
    """
    return [b"".join(document) for document in open_source(DataConfig(source=source, encoding=encoding))]


def facts_of(config: DataConfig, survey: Survey, tokenizer: TextTokenizer) -> Facts:
    """Return what a manifest says of a text."""
    return {
        "settings": _settings(config, tokenizer),
        "documents": len(survey),
        "copies": survey.copies(),
        "text_bytes": sum(survey.sizes),
    }


def tell_losses(config: DataConfig, tokenizer: TextTokenizer) -> None:
    """Warn of a tokenizer from whose tokens the text does not come back."""
    if tokenizer.losses:
        _logger.warning(
            "data.tokenizer: %s does not give back %s; bits per byte count the bytes of the text as it was read",
            config.tokenizer, ", ".join(tokenizer.losses),
        )  # fmt: skip


def _are_shards(paths: Sequence[Path], source: str) -> bool:
    shards = sum(path.suffix == ".bin" for path in paths)
    if 0 < shards < len(paths):
        raise CorpusError(
            f"data.source: {source!r} mixes token shards (*.bin) and other files; name one kind by a glob"
        )
    return shards > 0


def _kept_corpus(config: DataConfig, reader: CorpusReader, survey: Survey, tokenizer: TextTokenizer) -> Corpus | None:
    """The corpus in the cache; None where the user's cannot be written."""
    cache = cache_folder(config.cache)
    key = hash_document({
        "text": survey.hash,
        "tokenizer": tokenizer.hash,
        "separator": tokenizer.separator,
        "fraction": config.validation_fraction,
        "version": 1,
    })  # fmt: skip

    def make(folder: Path) -> None:
        write_shards(reader, tokenizer, folder, facts_of(config, survey, tokenizer))
        taken = size(sum(path.stat().st_size for path in folder.iterdir()))
        _logger.warning("data.tokenizer: %s of tokens are kept in %s (data.cache)", taken, folder)

    try:
        folder = kept(cache, key[:32], make)
    except CorpusError as error:
        if config.cache is not None or not isinstance(error.__cause__, OSError):
            raise
        _logger.warning("%s; tokens are not kept for the next run (data.cache names another folder)", error)
        return None
    return _prepared_corpus(folder, read_manifest(folder), tokenizer)


def _corpus_in_temporary_files(
    config: DataConfig, reader: CorpusReader, survey: Survey, tokenizer: TextTokenizer
) -> Corpus:
    try:
        with tempfile.TemporaryDirectory() as temporary:  # what is mapped stays there after its name
            folder = Path(temporary, "tokens")
            manifest = write_shards(reader, tokenizer, folder, facts_of(config, survey, tokenizer))
            return _prepared_corpus(folder, manifest, tokenizer)
    except CorpusError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        refusal = error.__cause__
    except OSError as error:
        refusal = error
    where = tempfile.gettempdir()
    raise CorpusError(f"data.source: tokens cannot be kept in {where} (TMPDIR): {refusal.strerror}") from refusal


def _settings(config: DataConfig, tokenizer: TextTokenizer) -> Facts:
    """Return what the tokens of a text depend on, beside the text and the tokenizer."""
    return {
        "source": config.source,
        "column": config.column,
        "document_by": config.document_by,
        "encoding": config.encoding,
        "tokenizer": config.tokenizer,
        "validation_fraction": config.validation_fraction,
        "document_token": tokenizer.separator,
    }


def _prepared_corpus(folder: Path, manifest: Manifest, tokenizer: TextTokenizer) -> Corpus:
    """The corpus in a folder of this process's making, which is taken at its word."""
    shards = [open_shard(folder / str(shard["name"])) for shard in manifest.shards]
    sides = split_shards(shards, 0.5, tokenizer.separator)  # both are there, by name
    return _corpus(sides, manifest.corpus, tokenizer, manifest.copies)


def _corpus_in_memory(reader: CorpusReader, survey: Survey, tokenizer: TextTokenizer) -> Corpus:
    encoded = list(encode_documents(reader, tokenizer))

    def side(name: str, *, is_held_back: bool) -> TokenStream:
        own = [part for part in encoded if part.is_held_back == is_held_back]
        counts = [part.byte_counts for part in own if part.byte_counts is not None]
        return TokenStream([part.ids for part in own], tokenizer.separator, name=name, byte_counts=counts or None)

    sides = side("training data", is_held_back=False), side("validation data", is_held_back=True)
    return _corpus(sides, reader.hash, tokenizer, survey.copies())


def _corpus(sides: tuple[TokenStream, TokenStream], digest: str, tokenizer: TextTokenizer, copies: int) -> Corpus:
    train, validation = sides
    measured = tokenizer if validation.byte_counts is None else tokenizer.measured_on(validation)
    return Corpus(train, validation, digest, tokenizer.vocab_size, measured, copies)


def _load_shards(paths: Sequence[Path], config: DataConfig) -> Corpus:
    if config.vocab_size is not None:
        return _raw_corpus(paths, config, config.vocab_size)
    tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    shards = [open_shard(path, tokenizer.vocab_size) for path in paths]
    for shard in shards:
        _check_tokenizer(shard, config.tokenizer, tokenizer)
    tell_losses(config, tokenizer)
    digest = hash_shards(shards, tokenizer.vocab_size)
    sides = split_shards(shards, config.validation_fraction, tokenizer.separator)
    if not tokenizer.knows_bytes and sides[1].byte_counts is None:
        _logger.warning(
            "data.tokenizer: the shards do not say how many bytes their tokens stand for; bits per byte are by the "
            "vocabulary's spelling (zoo data prepare writes shards that say it)"
        )
    return _corpus(sides, digest, tokenizer, 0)


def _raw_corpus(paths: Sequence[Path], config: DataConfig, vocab_size: int) -> Corpus:
    shards = [open_shard(path, vocab_size) for path in paths]
    stated = {shard.header.separator for shard in shards if shard.header is not None}
    separator = config.document_token
    if separator is None and len(stated) == 1 and all(shard.header is not None for shard in shards):
        (separator,) = stated
    digest = hash_shards(shards, vocab_size)
    train, validation = split_shards(shards, config.validation_fraction, separator)
    return Corpus(train, validation, digest, vocab_size, RawTokens(vocab_size, separator))


def _check_tokenizer(shard: Shard, name: str, tokenizer: TextTokenizer) -> None:
    header = shard.header
    if header is None or not any(header.tokenizer):
        return
    if header.tokenizer.hex() != tokenizer.hash:
        raise CorpusError(
            f"data.tokenizer: the shard {str(shard.path)!r} is of another tokenizer than {name!r} "
            f"(sha256 {header.tokenizer.hex()[:12]}, not {tokenizer.hash[:12]})"
        )
    if header.separator != tokenizer.separator:
        raise CorpusError(
            f"data.document_token: documents in the shard {str(shard.path)!r} start with {header.separator}, "
            f"not {tokenizer.separator}"
        )
