"""The benchmark of RWKV-7's op, on the CPU, where no kernels run."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from zoo.bench import rwkv7 as subject
from zoo.bench.rwkv7 import ENTRANTS, FLOOR, Rwkv7Benchmark, make_rwkv7_inputs
from zoo.bench.subjects import BOTH, FORWARD, Case
from zoo.bench.timing import wall_timer
from zoo.cli.bench import rwkv7
from zoo.errors import InputError

CASE = Case(heads=2, head_width=16)


def test_inputs_are_what_rwkv7_makes() -> None:
    r, log_w, k, v, kappa, a = make_rwkv7_inputs(CASE, 20, ENTRANTS["ours"])
    assert {x.shape for x in (r, log_w, k, v, kappa, a)} == {(1, 20, 2, 16)}
    assert FLOOR < log_w.min() <= log_w.max() < 0
    assert 0 < a.min() <= a.max() < 1
    torch.testing.assert_close(kappa.norm(dim=-1), torch.ones(1, 20, 2))


def test_arguments_that_are_ready_are_those_of_fla_core() -> None:
    *_, kappa, a = make_rwkv7_inputs(CASE, 20, ENTRANTS["ours"])
    *_, negated, product = ENTRANTS["arguments-ready"].inputs(CASE, 20, ENTRANTS["arguments-ready"])
    torch.testing.assert_close((negated, product), (-kappa, kappa * a))
    assert negated.is_leaf
    assert product.requires_grad


def test_who_can_run_is_measured_and_the_others_say_why() -> None:
    rows = list(Rwkv7Benchmark(CASE, (16, 40), wall_timer(2)).rows(lambda _: None))
    ran = [(row.name, row.tokens, row["passes"]) for row in rows if row.seconds is not None]
    assert ran == [("chunked", tokens, passes) for tokens in (16, 40) for passes in (FORWARD, BOTH)]
    absent = [row for row in rows if row.seconds is None]
    assert {row.name for row in absent} == {"ours", "direct", "arguments-ready"}
    reasons = {row.name: row.absent for row in absent}
    assert reasons["ours"] == "impl: 'triton' needs tensors on a GPU, r was on cpu"
    assert all("needs" in reasons[name] for name in ("direct", "arguments-ready"))


def test_an_unknown_entrant_is_named() -> None:
    with pytest.raises(InputError, match="entrants: expected some of ours, direct, arguments-ready, chunked, was 'chu"):
        Rwkv7Benchmark(CASE, (16,), wall_timer(1), ("chunky",))


def test_the_command_prints_tables_and_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rwkv7.csv"
    options = ["--device", "cpu", "--lengths", "16,32", "--heads", "1", "--head-width", "8", "--dtype", "float32"]
    result = CliRunner().invoke(rwkv7, [*options, "--entrants", "ours,chunked", "--repeats", "2", "--csv", str(path)])
    assert result.exit_code == 0, result.output
    assert "forward+backward" in result.stdout
    assert "ours: impl: 'triton' needs" in result.stdout
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["entrant"] for row in rows] == ["ours", "ours", "chunked", "chunked"] * 2
    assert all((float(row["seconds"]) > 0) if row["entrant"] == "chunked" else not row["seconds"] for row in rows)


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(rwkv7, [])
    assert isinstance(result.exception, InputError)
    assert "no GPU" in str(result.exception)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, "needs the package fla-core, which is not installed: pip install 'mixer-zoo[fla]'"),
        ({"fla-core": "0.5.1"}, "needs fla-core 0.6.0, 0.5.1 is installed: pip install 'mixer-zoo[fla]'"),
        ({"fla-core": "0.6.0"}, ""),
    ],
)
def test_what_is_missing_of_fla_core_is_named(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], expected: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise subject.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(subject.importlib.metadata, "version", version)
    assert subject._missing() == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"is_cuda": False, "device": "cpu"}, "needs a GPU, was on cpu"),
        ({"dtype": torch.float16}, "takes bfloat16, was torch.float16"),
        ({"shape": (1, 1, 1, 24)}, "takes heads of 16, 32, 64 or 128 channels, was 24"),
    ],
)
def test_what_fla_core_does_not_take_is_named(changes: dict[str, Any], expected: str) -> None:
    like = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (2, 3, 4, 64), "device": "cuda:0"}
    assert subject._misfit(SimpleNamespace(**(like | changes))) == expected
