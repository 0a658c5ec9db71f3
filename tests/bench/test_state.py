"""How exact states stay, over few steps."""

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zoo.bench.state import measure_state_error, select_recurrences
from zoo.bench.subjects import Case
from zoo.cli.bench import state
from zoo.errors import InputError

CASE = Case(batch_size=1, heads=2, head_width=8, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["p1", "gated-p1", "p2", "gated-p2", "rwkv7"])
def test_errors_stay_near_those_of_plain_float32(name: str) -> None:
    (recurrence,) = select_recurrences(CASE, [name])
    errors = measure_state_error(recurrence, [1, 7, 100, 250])
    assert [error.tokens for error in errors] == [1, 7, 100, 250]
    for error in errors:
        assert error["state"] <= 1.5 * error["plain_state"] + 1e-7
        assert error["output"] <= 1.5 * error["plain_output"] + 1e-7
        assert error["state"] < 1e-5
        assert error["output"] < 2**-7  # the output is bfloat16
    (narrow,) = select_recurrences(CASE._replace(dtype=torch.float32), [name])
    assert measure_state_error(narrow, [100])[0]["output"] < 1e-4


def test_an_op_that_errs_shows() -> None:
    (recurrence,) = select_recurrences(CASE, ["p2"])

    def forgetful(tokens, sums):
        o = recurrence.step(tokens, sums)
        for part in sums:
            part.mul_(1 - 1e-5)
        return o

    (error,) = measure_state_error(recurrence._replace(step=forgetful), [200])
    assert error["state"] > 100 * error["plain_state"]


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="ops: expected some of p1, gated-p1, p2, gated-p2, rwkv7, was 'p3'"):
        select_recurrences(CASE, ["p2", "p3"])
    with pytest.raises(InputError, match=r"positions: expected numbers from 1 on, was \[0, 5\]"):
        measure_state_error(select_recurrences(CASE)[0], [0, 5])


def test_the_command_prints_a_table_and_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    options = ["--steps", "30", "--at", "1,10,99", "--ops", "p2, rwkv7", "--csv", str(path)]
    result = CliRunner().invoke(state, options)
    assert result.exit_code == 0, result.output
    assert "relative errors to float64" in result.stdout.replace("\n", "")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["position"]) for row in rows] == [
        (name, at) for name in ("p2", "rwkv7") for at in ("1", "10", "30")
    ]
    assert all(0 <= float(row["state"]) < 1e-5 for row in rows)
