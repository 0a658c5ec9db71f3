"""Help: there for every command, quick, and with commands that really exist."""

import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import Result

from zoo import __version__
from zoo.cli import main

COMMANDS = [
    "list", "show", "wsfr", "plan", "train", "ablate", "study", "generate", "export", "convert", "serve",
    "evaluate", "data", "tokenizer", "cache", "bench", "tune",
]  # fmt: skip


def test_help_lists_the_commands(zoo: Callable[..., Result]) -> None:
    result = zoo("--help")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines()] == COMMANDS
    assert zoo("--version").stdout == f"zoo, version {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(zoo: Callable[..., Result], command: str) -> None:
    result = zoo(command, "-h")
    assert result.exit_code == 0
    assert f"zoo {command}" in result.stdout or f"main {command}" in result.stdout


@pytest.mark.parametrize("command", ["show", "train", "ablate", "generate", "export", "evaluate"])
def test_examples_in_help_are_valid_commands(command: str) -> None:
    context = click.Context(main, info_name="zoo")
    help_text = main.get_command(context, command).help
    examples = [line.strip() for line in help_text.splitlines() if line.strip().startswith(f"zoo {command} ")]
    assert examples
    for example in examples:
        arguments = example.partition(" > ")[0].replace('"', "").replace("'", "").split()[2:]
        if command != "generate":
            main.get_command(context, command).make_context(command, arguments, parent=context)


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from zoo.cli import main; "
        "names = ['list', 'show', 'train', 'ablate', 'generate']; "
        "codes = [CliRunner().invoke(main, [*name, '--help']).exit_code for name in [[], *([n] for n in names)]]; "
        "assert codes == [0] * 6, codes; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "zoo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: python -m zoo [OPTIONS] COMMAND")


def test_an_unknown_command_names_the_nearest(zoo: Callable[..., Result]) -> None:
    result = zoo("trian", "tiny")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: there is no command 'trian' (did you mean 'train'?)"
