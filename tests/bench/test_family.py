"""`zoo bench op --op` on the CPU: who is measured, on what, and who is absent."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zoo.bench.family import FLOOR, OPS, document_starts
from zoo.bench.subjects import BOTH, FORWARD, Case
from zoo.cli.bench import op_command
from zoo.errors import InputError
from zoo.kernels.delta import delta_attention

SMALL = ["--device", "cpu", "--heads", "2", "--head-width", "8", "--repeats", "1", "--lengths", "16,32"]


@pytest.mark.parametrize("op", ["gla", "delta", "gated-delta", "kda"])
def test_inputs_are_those_of_the_op(op: str) -> None:
    ours = OPS[op]["ours"]
    q, k, v, log_g, beta = ours.inputs(Case(2, heads=3, head_width=8), 20, ours)
    assert {x.shape for x in (q, k, v)} == {(2, 20, 3, 8)}
    assert (beta is None) == (op == "gla")
    gates = {"gla": (2, 20, 3, 8), "delta": None, "gated-delta": (2, 20, 3), "kda": (2, 20, 3, 8)}[op]
    assert (None if log_g is None else log_g.shape) == gates
    if beta is not None:
        torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 20, 3))
    assert delta_attention(q, k, v, log_g, beta).o.isfinite().all()


def test_inputs_of_rwkv7_are_what_it_makes() -> None:
    ours = OPS["rwkv7"]["ours"]
    r, log_w, k, v, kappa, a = ours.inputs(Case(heads=2, head_width=16), 20, ours)
    assert {x.shape for x in (r, log_w, k, v, kappa, a)} == {(1, 20, 2, 16)}
    assert FLOOR < log_w.min() <= log_w.max() < 0
    assert 0 < a.min() <= a.max() < 1
    torch.testing.assert_close(kappa.norm(dim=-1), torch.ones(1, 20, 2))


@pytest.mark.parametrize("documents", [1, 2, 5, 40])
def test_documents_fill_a_row(documents: int) -> None:
    starts = document_starts(documents, 64, "cpu").tolist()
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < 64
    assert len(starts) <= documents
    assert documents > 8 or len(starts) == documents


def test_contestants_of_packed_softmax_compute_the_same() -> None:
    case = Case(2, heads=2, head_width=16, documents=3)
    packed = OPS["packed-softmax"]
    inputs = packed["ours"].inputs(case, 48, packed["ours"])
    found, expected = (packed[name].build(case)(*inputs) for name in ("ours", "mask"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("op", "absent"),
    [
        ("kda", "fla: not installed (pip install flash-linear-attention)"),
        ("rwkv7", "fla: needs a GPU and bfloat16, was cpu and torch.float32"),
        ("packed-softmax", "varlen: needs a GPU"),
    ],
)
def test_the_command_prints_tables_and_writes_a_file(op: str, absent: str, tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    result = CliRunner().invoke(op_command, [*SMALL, "--op", op, "--csv", str(path)])
    assert result.exit_code == 0, result.output
    assert absent in result.stdout
    assert "K = V = 8, forward+backward" in result.stdout
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["op"] for row in rows} == {op}
    assert {row["passes"] for row in rows} == {FORWARD, BOTH}
    others = {row["contestant"] for row in rows} - {"fla", "varlen"}
    assert all((float(row["seconds"]) > 0) == (row["contestant"] in others) for row in rows if row["seconds"])
    assert {row["contestant"] for row in rows if row["seconds"]} == others


def test_what_there_is_not_is_one_line() -> None:
    with pytest.raises(InputError, match=r"op: expected some of power, gla, delta, .* was 'kdb'"):
        CliRunner().invoke(op_command, [*SMALL, "--op", "kdb"], catch_exceptions=False)
    with pytest.raises(InputError, match="contestants: expected some of ours, fla, was 'power'"):
        CliRunner().invoke(op_command, [*SMALL, "--op", "kda", "--contestants", "power"], catch_exceptions=False)
