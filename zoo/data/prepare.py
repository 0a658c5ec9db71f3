"""Text of any source to token shards in a new folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from zoo.data.corpus import facts_of, open_source, tell_losses
from zoo.data.documents import Document
from zoo.data.folder import SHARD_TOKENS, Facts, Manifest, input_facts, write_shards
from zoo.data.lengths import SomeDocuments, long_documents
from zoo.data.progress import telling
from zoo.data.reading import CorpusReader
from zoo.data.split import Survey
from zoo.data.tokenizer import TextTokenizer, load_tokenizer
from zoo.errors import ConfigError, CorpusError, InputError
from zoo.recipe.data import DataConfig
from zoo.report.files import writing
from zoo.report.numbers import counted

__all__ = ["prepare_shards"]

_WORTH_PROCESSES = 2**26  # bytes of text: to start processes takes seconds


def prepare_shards(
    config: DataConfig,
    out: Path,
    *,
    processes: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    minimum_tokens: int = 0,
) -> Manifest:
    """Tokenize the text that `config` names into the folder `out`, with constant memory, whole or not at all.

    The folder gets `train-*.bin`, `validation-*.bin`, `manifest.json` and, where there is one, the tokenizer.json. As
    `data.source` it is the corpus that `config` is. Until it is finished it is called `.partial`.

    Args:
        config: the text, its tokenizer and the share to hold back.
        out: must not be there.
        processes: that tokenize; 1: this one; None: one for each core where it pays.
        shard_tokens: tokens after which another shard is begun.
        minimum_tokens: documents of fewer are left out, before the split.

    Raises:
        InputError: `out` is there.
        ConfigError: the tokenizer cannot be loaded, or does not mark the documents that are to be measured.
        CorpusError: the text cannot be read or has no two documents that are long enough, or the folder cannot be
            written.
        InUseError: another process writes the folder.
    """
    if out.exists():
        raise InputError(f"out: {out} is there already; name a new folder")
    if config.tokenizer == "none":
        raise ConfigError("data.tokenizer: 'none' makes no tokens of text; name 'bytes' or a tokenizer.json")
    tokenizer = load_tokenizer(config.tokenizer, config.document_token)
    documents = open_source(config)
    tell_losses(config, tokenizer)
    packed_bytes = sum(path.stat().st_size for path in documents.files)
    with telling("hashing files", packed_bytes) as advance:
        inputs = input_facts(documents.files, advance)
    with telling("reading text", None) as advance:
        survey = documents.survey(advance)
    if processes is None:
        pays = config.tokenizer != "bytes" and sum(survey.sizes) >= _WORTH_PROCESSES
        processes = len(os.sched_getaffinity(0)) if pays else 1
    some, kept = _long_enough(documents, survey, tokenizer, minimum_tokens, processes)
    facts: Facts = {
        **facts_of(config, kept, tokenizer),
        "inputs": inputs,
        "file_copies": len(inputs) - len({each["sha256"] for each in inputs}),
        "left_out": {
            "files": documents.files_left_out,
            "documents": len(survey) - len(kept),
            "text_bytes": sum(survey.sizes) - sum(kept.sizes),
        },
    }
    facts["settings"]["minimum_tokens"] = minimum_tokens
    with telling("tokenizing", sum(kept.sizes)) as advance:
        reader = CorpusReader(some, kept, config.validation_fraction, advance)
        with writing(out, CorpusError):
            out.parent.mkdir(parents=True, exist_ok=True)
        return write_shards(
            reader, tokenizer, out, facts, processes=processes, shard_tokens=shard_tokens, also=_tokenizer_file(config)
        )


def _long_enough(
    documents: Iterable[Document], survey: Survey, tokenizer: TextTokenizer, minimum: int, processes: int
) -> tuple[Iterable[Document], Survey]:
    if not minimum:
        return documents, survey
    with telling("measuring documents", None):
        is_long = long_documents(documents, survey.sizes, tokenizer, minimum, processes)
    if is_long.sum() < 2:  # a lone one would be cut
        raise CorpusError(
            f"minimum_tokens: expected two documents or more of at least {minimum:,} tokens, "
            f"got {is_long.sum()} of {counted(len(survey), 'document')}"
        )
    return SomeDocuments(documents, is_long), survey.only(is_long)


def _tokenizer_file(config: DataConfig) -> dict[str, Path]:
    return {} if config.tokenizer == "bytes" else {"tokenizer.json": Path(config.tokenizer).expanduser()}
