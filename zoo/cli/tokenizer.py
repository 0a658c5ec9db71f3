"""`zoo tokenizer`."""

import shlex
from pathlib import Path
from typing import Any

import click

from zoo.cli.source import text_options, validation_option
from zoo.report.terminal import say

__all__ = ["tokenizer"]


@click.group()
def tokenizer() -> None:
    """Make the byte-pair tokenizer that a recipe names as data.tokenizer."""


@tokenizer.command()
@click.argument("source")
@click.option("--vocab-size", default=4096, show_default=True, type=click.IntRange(257, 2**20), help="Tokens at most.")
@click.option(
    "--output",
    default="tokenizer.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file.",
)
@click.option(
    "--bytes",
    "byte_limit",
    default=2**28,
    show_default=True,
    type=click.IntRange(1),
    help="Of a longer text, learn from so much, spread over all of it.",
)
@validation_option
@text_options
def train(source: str, vocab_size: int, output: Path, byte_limit: int, **options: Any) -> None:
    """Train a byte-pair tokenizer on SOURCE.

    SOURCE is what a recipe has as data.source: `stdlib`, a file, a folder or a glob of text, JSON lines, Parquet or
    Arrow. The text that such a recipe holds back for validation is not trained on here either.

    \b
    Examples:
      zoo tokenizer train stdlib --vocab-size 1024
      zoo train tiny data.tokenizer=tokenizer.json model.vocab_size=1024
    """
    from zoo.data.learning import learn_byte_pairs
    from zoo.errors import InputError
    from zoo.recipe import DataConfig

    if output.exists():  # runs may depend on it
        raise InputError(f"--output: {output} is there already; name a new file")
    learned = learn_byte_pairs(DataConfig(source=source, **options), vocab_size, byte_limit)
    output.parent.mkdir(parents=True, exist_ok=True)
    learned.tokenizer.save(output)
    vocab_size = learned.tokenizer.vocab_size
    say(f"{output}: {vocab_size:,} tokens, {learned.bytes_per_token:.2f} bytes each in the text held back")
    changed = [f"data.{name}={value}" for name, value in options.items() if value != _default(name)]
    overrides = [f"data.source={source}", *changed, f"data.tokenizer={output}", f"model.vocab_size={vocab_size}"]
    say(f"zoo train RECIPE {shlex.join(overrides)}")


def _default(name: str) -> object:
    from zoo.recipe import DataConfig

    return DataConfig.model_fields[name].default
