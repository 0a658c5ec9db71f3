"""Options of commands that read text, which are those of a recipe's `data`."""

from collections.abc import Callable
from typing import Any

import click

__all__ = ["text_options", "validation_option"]

validation_option = click.option(
    "--validation-fraction",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Share of SOURCE to hold back, as in the recipe.",
)


def text_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--column`, `--document-by` and `--encoding` to a command."""
    for option in reversed((
        click.option("--column", default="text", show_default=True, help="Of JSON lines, Parquet and Arrow: the text."),
        click.option(
            "--document-by",
            default="file",
            show_default=True,
            type=click.Choice(("file", "line", "folder", "package")),
            help="What of text files is one document; package: all below one entry of SOURCE.",
        ),
        click.option("--encoding", default="utf-8", show_default=True, help="Of text files."),
    )):  # fmt: skip
        command = option(command)
    return command
