"""A click group that imports a command only when it is used, and prints errors as one line."""

import errno
import importlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from zoo.errors import FaultsError, Interruption, ZooError, nearest
from zoo.report.terminal import PrintableFormatter, printable

__all__ = ["LazyGroup"]


class _Refused(click.ClickException):
    """An error that the user can put right."""

    exit_code = 2


class _Interrupted(click.ClickException):
    """A signal; the exit code is 128 and its number, as shells have it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = 128 + number  # the library declares it as the class's own


@contextmanager
def _told_printably() -> Iterator[None]:
    """Keep what documents and paths hold from giving the terminal orders, in errors and in what is logged."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        raise


def _let_the_first_speak(message: str) -> None:
    """End a process that is not the first of those that `torchrun` started, unless the error is its own.

    The launcher ends all processes when one has ended, and the first one is to print what all failed of.

    Raises:
        SystemExit: that is so.
    """
    if os.environ.get("RANK", "0") != "0" and not message.startswith("rank "):
        time.sleep(10)  # or until the launcher ends this one
        raise SystemExit(_Refused.exit_code)


class LazyGroup(click.Group):
    """Commands as `name: ("module:attribute", summary)`, so that help does not wait for torch.

    Exit codes: 2 for what the user can put right (any `ZooError`), 1 for what the system refuses, such as a full disk,
    128 and the number of the signal that ended a command: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, *args: Any, lazy_commands: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = dict(lazy_commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._lazy and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{nearest(args[0], self._lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._lazy.items()])

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _told_printably():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _told_printably():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FaultsError as error:
            lines = [" ".join(line.split()) for line in error.lines]
            raise _Refused("\n  ".join([f"{len(lines)} faults:", *lines])) from error
        except ZooError as error:
            _let_the_first_speak(str(error))
            raise _Refused(" ".join(str(error).split())) from error
        except Interruption as error:
            place = "the last checkpoint, if there is one" if error.saved is None else "there"
            raise _Interrupted(f"{error}; the same command goes on from {place}", error.signal) from error
        except KeyboardInterrupt as error:
            resumable = ctx.invoked_subcommand in ("train", "ablate", "study", "convert")
            hint = "; the same command goes on from the last checkpoint, if there is one" if resumable else ""
            raise _Interrupted(f"interrupted{hint}", signal.SIGINT) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `zoo list | head`; click leaves quietly
                raise
            place = "" if error.filename is None else f": {error.filename}"
            raise click.ClickException(f"{error.strerror or error}{place}") from error
