"""Kinds of fault: each tries one case, drawn from the bench's seed, and returns what went wrong, or nothing."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from .runs import Bench, StudyBench

__all__ = ["KINDS", "Kind", "kill"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IN_USE = "another process is training here"


def kill(bench: Bench) -> str:
    """SIGKILL at one to three random moments, then to the end."""
    run = bench.new_folder()
    for _ in range(bench.random.randint(1, 3)):
        process = bench.start(run, log := run.with_suffix(".log"))
        time.sleep(bench.random.uniform(0, 1.2 * bench.seconds))
        os.kill(process, signal.SIGKILL)
        ending = bench.wait(process, log)
        if ending.code not in (0, -signal.SIGKILL):
            return f"before it was killed it ended: {ending}"
    return _finish(bench, run)


def stop(bench: Bench) -> str:
    """One signal or two at random moments: the exit code, one line, and then to the end."""
    run = bench.new_folder()
    process = bench.start(run, log := run.with_suffix(".log"))
    time.sleep(bench.random.uniform(0, 1.2 * bench.seconds))
    numbers = [bench.random.choice(SIGNALS) for _ in range(bench.random.choice((1, 1, 1, 2)))]
    for number in numbers:
        os.kill(process, number)
    ending = bench.wait(process, log)
    # Before training begins, and after it has ended, signals are those of any program.
    codes = {0, *(128 + number for number in numbers), *(-number for number in numbers)}
    if ending.code not in codes or "Traceback" in "".join(ending.lines):
        return f"after {[number.name for number in numbers]} it ended: {ending}"
    if ending.code > 0 and "the same command goes on from" not in ending.lines[-1]:
        return f"it does not say how to go on: {ending}"
    return _finish(bench, run)


def damage(bench: Bench) -> str:
    """A file of a stopped or finished run is changed: it comes out as it was, or one line refuses it."""
    run = bench.new_folder()
    shutil.copytree(_prepared(bench, stopped=bench.random.random() < 0.6), run)
    path = bench.random.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    what = _change(bench, path)
    place = f"{what} {path.relative_to(run)}"
    ending = bench.train(run)
    if ending.code == 0:
        # A finished run is returned as it is: its checkpoints are read by who loads the model.
        same = (run / "result.json").exists() and (path.parent.parent.name == "checkpoints" or bench.is_straight(run))
        return "" if same else f"{place}: a silent difference"
    return "" if ending.is_one_line else f"{place}: {ending}"


def lose(bench: Bench) -> str:
    """Checkpoints of a stopped run are moved, emptied or replaced: one line, and the metrics stay."""
    run = bench.new_folder()
    shutil.copytree(_prepared(bench, stopped=True), run)
    folder, metrics = run / "checkpoints", (run / "metrics.jsonl").read_bytes()
    how = bench.random.choice(("moved", "emptied", "a file", "a link to nowhere"))
    if how == "emptied":
        for place in folder.iterdir():
            shutil.rmtree(place)
    else:
        shutil.rmtree(folder)
    if how == "a file":
        folder.write_bytes(bench.random.randbytes(9))
    elif how == "a link to nowhere":
        folder.symlink_to("nowhere")
    ending = bench.train(run)
    kept = (run / "metrics.jsonl").read_bytes() == metrics
    return "" if ending.is_one_line and kept else f"checkpoints {how}: {ending}"


def race(bench: Bench) -> str:
    """Eight starts at once on one folder: one trains, the others say so."""
    run = bench.new_folder()
    logs = [run.with_name(f"{run.name}-{number}.log") for number in range(8)]
    reading, writing = os.pipe()

    def wait() -> None:
        os.close(writing)
        os.read(reading, 1)  # until the other end is closed

    processes = [bench.start(run, log, wait) for log in logs]
    os.close(reading)
    os.close(writing)
    endings = [bench.wait(process, log) for process, log in zip(processes, logs, strict=True)]
    wrong = [each for each in endings if each.code and not (each.is_one_line and IN_USE in each.lines[-1])]
    if wrong or all(each.code for each in endings):
        return f"{len(wrong)} of 8 ended otherwise: {wrong[:1] or endings[:1]}"
    return "" if bench.is_straight(run) else "the run is not what it is alone"


def _finish(bench: Bench, run: Path) -> str:
    ending = bench.train(run)
    if ending.code:
        return f"it does not go on: {ending}"
    return "" if bench.is_straight(run) else "it comes to something else"


def _prepared(bench: Bench, *, stopped: bool) -> Path:
    if not stopped:
        return bench.straight
    run = bench.folder / "stopped"
    if not run.exists():
        shutil.copytree(bench.straight, run)
        (run / "result.json").unlink()
        shutil.rmtree(run / "checkpoints" / "step-00000012")
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b'{"kind": "tr')
    return run


def _change(bench: Bench, path: Path) -> str:
    content, random = path.read_bytes(), bench.random
    where = random.randrange(len(content)) if content else 0
    kind = random.choice(("a byte of", "the end of", "all of", "no longer there:", "more than", "zeros in", "a key of"))
    if kind == "a byte of" and content:
        path.write_bytes(content[:where] + bytes([content[where] ^ random.randint(1, 255)]) + content[where + 1 :])
    elif kind == "the end of":
        path.write_bytes(content[:where])
    elif kind == "all of":
        path.write_bytes(random.randbytes(random.randint(0, 40)))
    elif kind == "no longer there:":
        path.unlink()
    elif kind == "more than":
        path.write_bytes(content + random.choice((b"\0", b"{}\n", content)))
    elif kind == "zeros in":
        path.write_bytes(content[:where] + bytes(len(content[where : where + 64])) + content[where + 64 :])
    else:
        keys = [b"step", b"loss", b"kind", b"steps", b"sha256", b"facts", b"training", b"seconds", b"metrics"]
        path.write_bytes(content.replace(random.choice(keys), b"other"))
    return kind


class Kind(NamedTuple):
    """One kind of fault."""

    attempt: Callable[[Bench], str]
    cases: int
    """That are tried."""
    bench: type[Bench] = Bench


KINDS: Mapping[str, Kind] = {
    "SIGKILL at any moment": Kind(kill, 80),
    "SIGINT, SIGTERM, SIGHUP": Kind(stop, 80),
    "damaged files": Kind(damage, 600),
    "lost checkpoints": Kind(lose, 40),
    "starts at once": Kind(race, 20),
    "SIGKILL of a study": Kind(kill, 50, StudyBench),
    "signals to a study": Kind(stop, 20, StudyBench),
}
