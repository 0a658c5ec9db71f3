"""`zoo bench delta` and `zoo bench packed` on the CPU: who is measured, on what, and who is absent."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zoo.bench.delta import OPS
from zoo.bench.packed import packed_ops, starts_of
from zoo.bench.subjects import BOTH, FORWARD, Case
from zoo.cli.bench import delta, packed
from zoo.errors import InputError
from zoo.kernels.delta import delta_attention

SMALL = ["--device", "cpu", "--heads", "2", "--head-width", "8", "--dtype", "float32", "--repeats", "1"]


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_those_of_the_op(op: str) -> None:
    ours, _ = OPS[op]
    q, k, v, log_g, beta = ours.inputs(Case(2, heads=3, head_width=8), 20, ours)
    assert {x.shape for x in (q, k, v)} == {(2, 20, 3, 8)}
    assert (beta is None) == (op == "gla")
    gates = {"gla": (2, 20, 3, 8), "delta": None, "gated-delta": (2, 20, 3), "kda": (2, 20, 3, 8)}[op]
    assert (None if log_g is None else log_g.shape) == gates
    if beta is not None:
        torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 20, 3))
    assert delta_attention(q, k, v, log_g, beta).o.isfinite().all()


@pytest.mark.parametrize("documents", [1, 2, 5, 40])
def test_documents_fill_a_row(documents: int) -> None:
    starts = starts_of(documents, 64, "cpu").tolist()
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < 64
    assert len(starts) <= documents
    assert documents > 8 or len(starts) == documents


def test_entrants_compute_the_same() -> None:
    ours, _, mask = packed_ops((3,))["3 documents"]
    case = Case(2, heads=2, head_width=16)
    inputs = ours.inputs(case, 48, ours)
    found, expected = (entrant.build(case)(*inputs) for entrant in (ours, mask))
    torch.testing.assert_close(found, expected)


def test_the_commands_print_tables_and_write_files(tmp_path: Path) -> None:
    for command, options, present, absent in (
        (delta, ["--ops", "delta,kda"], {"delta", "kda"}, "fla: not installed"),
        (packed, ["--documents", "1,3"], {"1 document", "3 documents"}, "varlen: needs a GPU"),
    ):
        path = tmp_path / "times.csv"
        result = CliRunner().invoke(command, [*SMALL, *options, "--lengths", "16,32", "--csv", str(path)])
        assert result.exit_code == 0, result.output
        assert absent in result.stdout
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["op"] for row in rows} == present
        assert {row["passes"] for row in rows} == {FORWARD, BOTH}
        assert all(float(row["seconds"]) > 0 for row in rows if row["entrant"] == "ours")


def test_what_there_is_not_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="ops: expected some of gla, delta, gated-delta, kda, was 'kdb'"):
        CliRunner().invoke(delta, [*SMALL, "--ops", "kdb"], catch_exceptions=False)
    with pytest.raises(InputError, match="graph: expected a GPU"):
        CliRunner().invoke(packed, [*SMALL, "--graph"], catch_exceptions=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        CliRunner().invoke(packed, [], catch_exceptions=False)
