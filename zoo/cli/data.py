"""`zoo data`."""

import shlex
from pathlib import Path
from typing import Any

import click

from zoo.cli.options import Folder
from zoo.cli.source import text_options, validation_option
from zoo.report.terminal import say

__all__ = ["data"]


@click.group()
def data() -> None:
    """Turn text into token shards, which a recipe names as data.source."""


@data.command()
@click.argument("source")
@click.argument("out", type=Folder())
@click.option("--tokenizer", default="bytes", show_default=True, help="`bytes`, or the path of a tokenizer.json.")
@click.option("--document-token", type=click.IntRange(0), help="The id that starts a document.  [default: its own]")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="That tokenize; 1: this one.  [default: one for each core, where it pays]",
)
@click.option(
    "--minimum-tokens",
    default=0,
    type=click.IntRange(0),
    help="Leave out documents of fewer, before the split.  [default: none is left out]",
)
@validation_option
@text_options
def prepare(source: str, out: Path, tokenizer: str, processes: int | None, minimum_tokens: int, **options: Any) -> None:
    """Tokenize SOURCE into the new folder OUT: shards of training and validation tokens, and a manifest.

    SOURCE is what a recipe has as data.source: `stdlib`, a file, a folder or a glob of text, JSON lines, Parquet or
    Arrow. It is read with constant memory. OUT is there whole or not at all: until it is finished it is OUT.partial,
    and the same command starts anew.

    \b
    Examples:
      zoo data prepare 'web/*.parquet' web-tokens --tokenizer tokenizer.json
      zoo data prepare repositories code-tokens --document-by folder
      zoo data prepare repositories long-tokens --document-by package --minimum-tokens 65536
    """
    from zoo.data.prepare import prepare_shards
    from zoo.recipe import DataConfig
    from zoo.report.numbers import counted, size

    config = DataConfig(source=source, tokenizer=tokenizer, **options)
    manifest = prepare_shards(config, out, processes=processes, minimum_tokens=minimum_tokens)
    tokens = ", ".join(f"{count:,} {side}" for side, count in manifest.tokens.items())
    documents = f"{manifest.documents:,} documents, of which {manifest.copies:,} are copies"
    say(f"{out}: {size(manifest.text_bytes)} of text in {documents}; tokens: {tokens}")
    if minimum_tokens:
        short, text_bytes = (manifest.left_out[key] for key in ("documents", "text_bytes"))
        say(f"left out: {counted(short, 'document')} of fewer than {minimum_tokens:,} tokens, {size(text_bytes)}")
    if manifest.file_copies:
        say(f"of {counted(len(manifest.inputs), 'file')} that were read {manifest.file_copies:,} are copies of others")
    changed = [f"data.document_token={options['document_token']}"] if options["document_token"] is not None else []
    named = (
        [f"data.tokenizer={out / 'tokenizer.json'}", f"model.vocab_size={manifest.vocab_size}"]
        if tokenizer != "bytes"
        else []
    )
    say(f"zoo train RECIPE {shlex.join([f'data.source={out}', *named, *changed])}")
