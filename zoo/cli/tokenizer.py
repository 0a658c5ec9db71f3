"""`zoo tokenizer`."""

import shlex
from pathlib import Path

import click

from zoo.report.terminal import say

__all__ = ["tokenizer"]


@click.group()
def tokenizer() -> None:
    """Make the byte-pair tokenizer that a recipe names as data.tokenizer."""


@tokenizer.command()
@click.argument("source")
@click.option("--vocab-size", default=4096, show_default=True, type=click.IntRange(257, 2**16), help="Tokens at most.")
@click.option(
    "--output",
    default="tokenizer.json",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A new file.",
)
@click.option(
    "--validation-fraction",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of SOURCE to hold back, as in the recipe.",
)
def train(source: str, vocab_size: int, output: Path, validation_fraction: float) -> None:
    """Train a byte-pair tokenizer on SOURCE.

    SOURCE is what a recipe has as data.source: `stdlib`, a text file, a folder or a glob. The text that such a recipe
    holds back for validation is not trained on here either.

    \b
    Examples:
      zoo tokenizer train stdlib --vocab-size 1024
      zoo train tiny data.tokenizer=tokenizer.json model.vocab_size=1024
    """
    from zoo.data import read_text
    from zoo.data.bpe import BytePairTokenizer
    from zoo.data.corpus import split_texts
    from zoo.data.pieces import text_pieces
    from zoo.errors import InputError

    if output.exists():  # runs may depend on it
        raise InputError(f"--output: {output} is there already; name a new file")
    training, held_back = split_texts(read_text(source), validation_fraction)
    output.parent.mkdir(parents=True, exist_ok=True)
    trained = BytePairTokenizer.train(training, vocab_size)
    trained.save(output)
    tokens = sum(len(trained.encode(piece)) for text in held_back for piece in text_pieces(text, 2**20))
    ratio = sum(map(len, held_back)) / tokens
    say(f"{output}: {trained.vocab_size:,} tokens, {ratio:.2f} bytes each in the text held back")
    overrides = [f"data.source={source}", f"data.tokenizer={output}", f"model.vocab_size={trained.vocab_size}"]
    say(f"zoo train RECIPE {shlex.join(overrides)}")
