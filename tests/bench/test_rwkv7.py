"""The benchmark of RWKV-7's op, on the CPU, where no kernels run."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

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
    assert reasons["direct"] == reasons["arguments-ready"] == "needs a GPU and bfloat16, was cpu and torch.float32"


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
