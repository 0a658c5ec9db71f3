"""A run that trains in a moment, what it comes to undisturbed, and how an attempt at it ended."""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import zoo.study.page
import zoo.study.report
from zoo.builder import shrink
from zoo.cli import main
from zoo.recipe import load_recipe
from zoo.study import StudySummary
from zoo.training import read_metrics

STEPS = 12
TIMES = ("seconds", "tokens_per_second")


class Ending(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code, or the signal that killed it with a minus."""
    lines: tuple[str, ...]
    """What it wrote to standard error."""

    @property
    def is_one_line(self) -> bool:
        """Whether it was refused by one line and no traceback."""
        errors = [line for line in self.lines if line.startswith("Error: ")]
        return self.code in (1, 2) and len(errors) == 1 and "Traceback" not in "".join(self.lines)


class Bench:
    """Where cases are tried: a recipe, its text, and the run that nothing disturbed."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.set_num_threads(1)
        self.folder, self.random = folder, random.Random(seed)
        text = folder / "text.txt"
        text.write_text("".join(f"Line {number} of a text about lines.\n" for number in range(400)))
        options = {
            "name": "little", "data.source": text, "data.validation_fraction": 0.2, "model.layers": 1,
            "mixer": "gated-power", "training.compile": "false", "training.steps": STEPS, "training.warmup_steps": 1,
            "training.context_length": 32, "training.evaluation_tokens": 128, "training.checkpoint_every": 3,
            "training.evaluate_every": 4, "training.log_every": 2,
        }  # fmt: skip
        self.recipe = folder / "little.yaml"
        overrides = [f"{key}={value}" for key, value in options.items()]
        self.recipe.write_text(shrink(load_recipe("tiny")).override(overrides).to_yaml())
        self.straight = folder / "straight"
        self._cases = 0
        for run in (self.straight, self.new_folder()):  # the first time takes longer
            started = time.perf_counter()
            assert self.wait(self.start(run, log := run.with_suffix(".log")), log).code == 0
            self.seconds = time.perf_counter() - started

    def new_folder(self) -> Path:
        self._cases += 1
        return self.folder / "cases" / str(self._cases)

    def arguments(self, run: Path) -> Sequence[str]:
        return ["train", str(self.recipe), "--folder", str(run)]

    def train(self, run: Path) -> Ending:
        """Run `zoo train` in this process."""
        result = CliRunner().invoke(main, list(self.arguments(run)))
        lines = result.stderr.splitlines()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            lines += ["Traceback", repr(result.exception)]
        return Ending(result.exit_code, tuple(lines))

    def start(self, run: Path, log: Path, wait: Callable[[], None] = lambda: None) -> int:
        """Run `zoo train` in a process of its own, which has all imported already, and return its number.

        Args:
            run: its folder.
            log: gets what it writes.
            wait: called first.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")  # a signal may come before the process has opened it
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            return process
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            wait()
            main(list(self.arguments(run)))
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self, process: int, log: Path) -> Ending:
        """Return how a process that was started ended."""
        _, status = os.waitpid(process, 0)
        return Ending(os.waitstatus_to_exitcode(status), tuple(log.read_text().splitlines()))

    def is_straight(self, run: Path) -> bool:
        """Whether a run came to what an undisturbed one comes to, bit by bit."""
        return _outcome(run) == _outcome(self.straight)


class StudyBench(Bench):
    """A study of three runs in place of a run: `zoo study run` by one process, without drawing plots."""

    def __init__(self, folder: Path, seed: int) -> None:
        for module in (zoo.study.page, zoo.study.report):
            vars(module)["render"] = lambda *_arguments: b"<svg/>"
        super().__init__(folder, seed)

    def arguments(self, run: Path) -> Sequence[str]:
        options = ["--seeds", "1", "--mixers", "softmax,linear,gated-power", "--processes", "1"]
        return ["study", "run", str(self.recipe), *options, "--folder", str(run)]

    def is_straight(self, run: Path) -> bool:
        """Whether every run and the table came to what they come to undisturbed, and each metric stands once."""
        names = ("softmax", "linear", "gated-power")
        return all(_outcome(run / name) == _outcome(self.straight / name) for name in names) and (
            (run / "index.html").is_file() and _losses(run) == _losses(self.straight)
        )


def _losses(study: Path) -> list[float]:
    summary = StudySummary.from_json((study / "summary.json").read_text())
    assert summary.unfinished == ()
    return [variant.final_bits for variant in summary.variants]


def _outcome(run: Path) -> object:
    records = read_metrics(run / "metrics.jsonl")
    weights = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in (run / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records], weights
