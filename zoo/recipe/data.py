"""The `data` section of a recipe: text, tokenizer and the share that is held back."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from zoo.config import Config
from zoo.limits import LARGEST_VOCABULARY

__all__ = ["SEPARATOR", "DataConfig"]

SEPARATOR = 256
"""Starts every document of bytes; the first id that is not a byte."""


class DataConfig(Config):
    """Where the text comes from, how it becomes tokens and how much of it is held back for validation.

    A recipe on token shards of GPT-2's vocabulary, for example, sets `source: data/*.bin`, `tokenizer: none`,
    `vocab_size: 50257` and `document_token: 50256`.
    """

    source: str = Field("stdlib", min_length=1)
    """`stdlib` (the Python standard library's source), or a file, a folder or a glob: text, JSON lines, Parquet, Arrow,
    or `*.bin` token shards. A file or folder that happens to be called stdlib is `./stdlib`."""

    column: str = Field("text", min_length=1)
    """What holds the text in JSON lines (a key), Parquet and Arrow (a column)."""

    document_by: Literal["file", "line", "folder", "package"] = "file"
    """What of text files is one document: a file, a line, all files that lie in one folder, or all files below one
    entry of the source (of a glob, of the folder before its first wildcard). A record always is."""

    encoding: str = "utf-8"
    """Of text files, such as `latin-1` or `utf-16`; files that are no text in it are left out."""

    tokenizer: str = Field("bytes", min_length=1)
    """`bytes`, the path of a `tokenizer.json`, or `none` for shards whose tokenizer is not at hand."""

    validation_fraction: float = Field(0.05, gt=0, le=0.5)
    """Share of the corpus, in bytes (shards: in tokens), that is held back."""

    document_token: int | None = Field(None, ge=0, lt=LARGEST_VOCABULARY)
    """The id that starts a document; by default the tokenizer's own. Without one the documents run into each other."""

    vocab_size: int | None = Field(None, ge=2, le=LARGEST_VOCABULARY)
    """Number of token ids; stated for `tokenizer: none` only, every other tokenizer knows its own."""

    cache: str | None = Field(None, min_length=1)
    """Folder that keeps tokenized text for the next run; by default one in the user's cache."""

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)  # no more than a look-up, which refuses codecs that are not of text too
        except (LookupError, ValueError):
            raise ValueError(f"is no encoding of text that Python knows, got {encoding!r:.60}") from None
        return encoding

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.tokenizer == "none":
            if self.vocab_size is None:
                raise ValueError("vocab_size must be stated when tokenizer is 'none'")
            if self.document_token is not None and self.document_token >= self.vocab_size:
                raise ValueError(f"document_token {self.document_token} is not below vocab_size {self.vocab_size}")
        elif self.vocab_size is not None:
            raise ValueError(
                f"vocab_size {self.vocab_size} is for tokenizer 'none'; tokenizer {self.tokenizer!r} has its own"
            )
        if self.tokenizer == "bytes" and self.document_token not in (None, SEPARATOR):
            raise ValueError(
                f"document_token {self.document_token} is not {SEPARATOR}, which starts documents of bytes"
            )
        return self
