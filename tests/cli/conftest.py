"""For tests of the command line: a runner, and a recipe that trains in a second."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zoo.builder import shrink
from zoo.cli import main
from zoo.recipe import load_recipe


@pytest.fixture
def zoo() -> Callable[..., Result]:
    """Run `zoo` with arguments; standard output and standard error are kept apart."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def refused(zoo: Callable[..., Result]) -> Callable[..., str]:
    """Run `zoo` with arguments that it must refuse with exit code 2, and return the one line it says."""

    def run(*arguments: str | Path) -> str:
        result = zoo(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr[len("Error: ") : -1]

    return run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A shrunk recipe on a little text of its own, four steps long, not compiled."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of a text about lines.\n" for number in range(400)))
    overrides = [
        *(
            "name=little",
            f"data.source={text}",
            "training.compile=false",
            "training.steps=4",
            "training.warmup_steps=1",
        ),
        *(
            "training.checkpoint_every=2",
            "training.evaluate_every=2",
            "training.log_every=1",
            "data.validation_fraction=0.2",
        ),
    ]
    path = tmp_path / "little.yaml"
    path.write_text(shrink(load_recipe("tiny")).override(overrides).to_yaml())
    return path
