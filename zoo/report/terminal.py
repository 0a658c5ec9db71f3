"""What others wrote, such as documents, paths and descriptions, in a terminal: it is shown and gives no orders."""

import logging
import re
import sys

__all__ = ["PrintableFormatter", "printable", "say"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return the text with control characters written out, as `\x1b`; tabs and ends of lines stay.

    Those that turn the direction of writing are among them, since they show a text that is not there.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def say(text: str) -> None:
    """Write a line to standard output: as it is to files and pipes, and printable to a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


class PrintableFormatter(logging.Formatter):
    """Log lines without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
