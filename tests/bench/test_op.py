"""`zoo bench op` on the CPU: who is measured, who is absent and why; times themselves are never looked at."""

import csv
import sys
import warnings
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from zoo.bench.engine import OUT_OF_MEMORY, Row, run
from zoo.bench.op import OpBenchmark
from zoo.bench.subjects import BOTH, CONTESTANTS, FORWARD, Case, Contestant, Refusal, Subject, make_inputs, select
from zoo.bench.timing import Ceilings, Timing, measure_ceilings, wall_timer
from zoo.cli import main
from zoo.errors import InputError
from zoo.kernels.power import Heads, forward_flops, power_attention
from zoo.report import files

TIMER = wall_timer(1)


def measure(benchmark: OpBenchmark) -> list[Row]:
    return list(benchmark.rows(lambda _: None))


def attend_eagerly(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
    return power_attention(q, k, v, log_g).o


def test_contestants_are_measured_at_every_length_and_pass(make_benchmark: Callable[..., OpBenchmark]) -> None:
    benchmark = make_benchmark("power", "softmax-math", powers=(1, 2), quadratic_limit=64)
    rows = measure(benchmark)
    places = [(row.name, row["p"], row.tokens, row["passes"]) for row in rows]
    assert sorted(places) == sorted(
        (name, p, tokens, passes)
        for name in ("power", "softmax-math")
        for p in (1, 2)
        for tokens in (64, 128)
        for passes in (FORWARD, BOTH)
    )
    for row in rows:
        too_long = row.name == "softmax-math" and row.tokens > 64
        assert (row.seconds is None) == too_long
        assert row.absent == ""
        assert (row["flops_per_second"] is not None) == (row.name == "power")
    softmax = [row.seconds for row in rows if row.name == "softmax-math" and row.tokens == 64]
    assert softmax[0] == softmax[1]  # one measurement for both powers


def test_work_is_counted_as_the_op_counts_it(make_benchmark: Callable[..., OpBenchmark], ceilings: Ceilings) -> None:
    forward, both = measure(make_benchmark("power", lengths=(128,), batch_size=3))
    flops = forward_flops(3, 128, Heads(2, 2, 2), 16, 16, 2)
    for row, times in ((forward, 1), (both, 3)):
        assert row["flops_per_second"] * row.seconds == pytest.approx(times * flops)
        assert row["matmul_share"] == pytest.approx(row["flops_per_second"] / ceilings.matmul)
    numbers = 3 * 128 * 2 * 4 * (4 * 16 + 1)  # q, k, v, o and gates of 4 bytes
    assert forward["copy_share"] * ceilings.copy * forward.seconds == pytest.approx(numbers)
    assert both["copy_share"] * ceilings.copy * both.seconds == pytest.approx(2 * numbers)


def test_our_op_compiles_once_for_all_lengths_or_for_each() -> None:
    torch.compiler.reset()
    for name, expected in (("power", 1), ("power-static", 3)):
        counters.clear()
        subject = Subject(CONTESTANTS[name], Case(1, 2, 16, 2, gated=True))
        for tokens in (64, 96, 1100):
            assert subject.measure(tokens, BOTH, TIMER).absent == ""
        assert counters["stats"]["unique_graphs"] == expected


def test_what_refuses_is_absent_with_its_reason_and_not_tried_again() -> None:
    tries = []

    def refuse(*_: Tensor | None) -> Tensor:
        tries.append(1)
        raise RuntimeError("needs another GPU\nand more")

    subject = Subject(Contestant("refusing", lambda _: refuse), Case(1, 2, 16))
    for passes in (FORWARD, BOTH, FORWARD):
        assert subject.measure(64, passes, TIMER).absent == "needs another GPU"
    assert len(tries) == 1


def test_a_refused_backward_pass_leaves_the_forward_pass() -> None:
    def refuse(_: Case) -> None:
        raise Refusal("has no backward pass")

    subject = Subject(
        Contestant("one-way", lambda _: attend_eagerly, check_backward=refuse), Case(1, 2, 16, gated=True)
    )
    assert subject.measure(64, BOTH, TIMER).absent == "has no backward pass"
    assert subject.measure(64, FORWARD, TIMER).timing is not None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_lack_of_memory_at_one_length_is_not_the_end(error: Exception) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        if q.shape[1] == 128:
            raise RuntimeError("while compiling") from error
        return attend_eagerly(q, k, v, log_g)

    subject = Subject(Contestant("greedy", lambda _: attend), Case(1, 2, 16))
    absences = [subject.measure(tokens, BOTH, TIMER).absent for tokens in (64, 128, 64)]
    assert absences == ["", OUT_OF_MEMORY, ""]


def test_an_attention_backend_that_is_not_there_is_absent() -> None:
    outcome = Subject(CONTESTANTS["softmax-cudnn"], Case(1, 2, 16)).measure(64, FORWARD, TIMER)
    assert outcome.timing is None
    assert "No viable backend" in outcome.absent


def test_what_a_backend_warns_about_is_its_reason() -> None:
    def attend(*_: Tensor | None) -> Tensor:
        for text in (
            "CuDNN attention has been runtime disabled. (Triggered internally at a.cpp:1.)",
            "Flash attention kernel not used because: (Triggered internally at a.cpp:2.)",
            "Expected query, key and value to be of dtype {Half, BFloat16}. (Triggered internally at a.cpp:3.)",
        ):
            warnings.warn(text, UserWarning, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    outcome = Subject(Contestant("picky", lambda _: attend), Case(1, 2, 16)).measure(64, FORWARD, TIMER)
    assert outcome.absent == "Expected query, key and value to be of dtype {Half, BFloat16}."


def put_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    """Make a module importable, with the packages that it is in."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:depth]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(content)


def test_retention_gets_gates_and_is_tuned_at_a_long_length(
    monkeypatch: pytest.MonkeyPatch, make_benchmark: Callable[..., OpBenchmark]
) -> None:
    seen = []

    def power_retention(Q: Tensor, K: Tensor, V: Tensor, log_G: Tensor | None, *, deg: int, chunk_size: int) -> Tensor:
        seen.append((Q.shape[1], log_G is not None, deg, chunk_size))
        return attend_eagerly(Q, K, V, log_G)

    put_module(monkeypatch, "retention.triton", power_retention=power_retention)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    said: list[str] = []
    benchmark = make_benchmark("retention", head_widths=(32,), powers=(1, 2))
    rows = list(benchmark.rows(said.append))
    assert seen[0] == (128, True, 2, 1024)
    assert said == ["retention tunes itself for K = 32, which can take minutes"]
    assert {row.absent for row in rows if row["p"] == 1} == {"has only p = 2"}
    assert all(row.seconds is not None for row in rows if row["p"] == 2)


def test_what_does_not_compile_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Tensor | None) -> Tensor:
        raise TorchDynamoException("not today")

    put_module(
        monkeypatch, "retention.triton", power_retention=lambda Q, K, V, log_G, **_: attend_eagerly(Q, K, V, log_G)
    )
    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    subject = Subject(CONTESTANTS["retention"], Case(1, 2, 32, gated=True))
    assert [subject.measure(64, passes, TIMER).absent for passes in (FORWARD, BOTH)] == ["", ""]


@pytest.mark.parametrize(
    ("fixed", "gated", "refuses"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_fla_backward_is_not_tried_where_it_is_known_to_refuse(
    monkeypatch: pytest.MonkeyPatch, fixed: bool, gated: bool, refuses: bool
) -> None:
    def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> tuple[Tensor, None]:
        return power_attention(q, k, v, g, p=1).o, None

    put_module(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=chunk_simple_gla)
    utils = SimpleNamespace(IS_NVIDIA_HOPPER=True, TRITON_ABOVE_3_4_0=True, TRITON_ABOVE_3_7_1=fixed)
    monkeypatch.setitem(sys.modules, "fla.utils", utils)
    subject = Subject(CONTESTANTS["fla"], Case(1, 2, 16, p=1, gated=gated))
    assert subject.measure(64, FORWARD, TIMER).absent == ""
    assert ("refuses" in subject.measure(64, BOTH, TIMER).absent) == refuses


@pytest.mark.parametrize(("name", "p"), [("retention", 2), ("fla", 1)])
def test_peers_that_are_not_installed_say_so(monkeypatch: pytest.MonkeyPatch, name: str, p: int) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    outcome = Subject(CONTESTANTS[name], Case(1, 2, 32, p=p)).measure(64, FORWARD, TIMER)
    assert outcome.absent.startswith("not installed (pip install ")


def test_a_peer_without_what_it_needs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "retention").mkdir()
    (tmp_path / "retention/__init__.py").touch()
    (tmp_path / "retention/triton.py").write_text("import vidrial_is_not_here")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = Subject(CONTESTANTS["retention"], Case(1, 2, 32)).measure(64, FORWARD, TIMER)
    assert outcome.absent == "needs vidrial_is_not_here, which is not installed"
    for module in [name for name in sys.modules if name.partition(".")[0] == "retention"]:
        monkeypatch.delitem(sys.modules, module)


def test_unknown_contestants_are_refused() -> None:
    with pytest.raises(InputError, match=r"was 'powr' \(did you mean 'power'\?\)"):
        select("contestants", ["power", "powr"], CONTESTANTS)


def test_a_run_writes_tables_a_csv_file_and_a_plot(make_benchmark: Callable[..., OpBenchmark], tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=80, record=True)
    ceilings = measure_ceilings(TIMER, "cpu", width=32, elements=1024)
    found = run(
        make_benchmark("power", "softmax-math", "softmax-cudnn", ceilings=ceilings),
        console=console,
        progress=Console(quiet=True),
        csv_path=tmp_path / "times.csv",
        plot_path=tmp_path / "times.svg",
    )
    text = console.export_text()
    assert "K = V = 16, p = 2, forward\n" in text
    assert text.count("softmax-cudnn: No viable backend") == 1
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["contestant"], row["tokens"], row["passes"]) for row in rows] == [
        (row.name, str(row.tokens), row["passes"]) for row in found
    ]
    assert {(row["dtype"], row["heads"], row["gated"]) for row in rows} == {("float32", "2", "True")}
    assert (tmp_path / "times.svg").read_bytes().startswith(b"<?xml")


def test_what_cannot_be_written_is_refused_before_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for arguments, said in (
        (["--csv", tmp_path / "not/there.csv"], "csv: expected a file in a folder that exists"),
        (["--csv", ""], "csv: expected a file in a folder that exists"),
        (["--plot", tmp_path / "plot.pdf"], "plot: expected a file name that ends in .png or .svg"),
    ):
        result = CliRunner().invoke(main, ["bench", "op", *map(str, arguments)])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"Error: {said}")
    monkeypatch.setattr(files, "find_spec", lambda _: None)
    result = CliRunner().invoke(main, ["bench", "op", "--plot", str(tmp_path / "plot.png")])
    assert result.stderr == "Error: plot: needs matplotlib, which is not installed: pip install 'mixer-zoo[plots]'\n"


def test_graphs_are_recorded_on_gpus_alone() -> None:
    result = CliRunner().invoke(main, ["bench", "op", "--device", "cpu", "--graph"])
    assert result.stderr == "Error: graph: expected a GPU, which has CUDA graphs, was --device cpu\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    result = CliRunner().invoke(main, ["bench", "op"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: zoo bench op needs a GPU")
    assert result.stderr.count("\n") == 1


def test_gates_of_different_heads_forget_at_different_rates() -> None:
    *_, log_g = make_inputs(Case(2, 4, 16, gated=True, dtype=torch.bfloat16), 1000, CONTESTANTS["power"])
    assert log_g is not None
    assert log_g.shape == (2, 1000, 4)
    assert log_g.dtype == torch.float32
    assert (log_g < 0).all()
    means = log_g.mean((0, 1))
    assert (means.diff() > 0).all()
    assert log_g.std(1).min() > 0


def test_inputs_are_as_a_contestant_likes_them() -> None:
    q, k, v, log_g = make_inputs(Case(2, 4, 16, gated=True), 10, CONTESTANTS["softmax"])
    assert {x.shape for x in (q, k, v) if x is not None} == {(2, 4, 10, 16)}
    assert log_g is None
    assert make_inputs(Case(2, 4, 16), 10, CONTESTANTS["power"])[3] is None


def test_power_beside_softmax_on_the_cpu(tmp_path: Path) -> None:
    sizes = ["--lengths", "64,256", "--heads", "2", "--head-width", "16", "--quadratic-limit", "64", "--repeats", "1"]
    path = tmp_path / "times.csv"
    result = CliRunner().invoke(main, ["bench", "op", "--device", "cpu", *sizes, "--csv", str(path)])
    assert result.exit_code == 0, result.output
    assert "power is" in result.stdout
    with path.open() as file:
        rows = {(row["contestant"], row["tokens"], row["passes"]): row for row in csv.DictReader(file)}
    assert {name for name, *_ in rows} == {"power", "softmax"}
    for (name, tokens, passes), row in rows.items():
        assert bool(row["seconds"]) == (name == "power" or tokens == "64")
        assert bool(row["peak_bytes"]) == (name == "power" and passes == BOTH)
        assert (row["dtype"], row["gated"], row["p"]) == ("float32", "False", "2")
    peaks = [int(rows["power", tokens, BOTH]["peak_bytes"]) for tokens in ("64", "256")]
    assert 0 <= peaks[0] < 2**30
    assert peaks[1] < 2**30


def test_a_csv_file_on_standard_output_has_it_to_itself() -> None:
    sizes = ["--lengths", "8", "--heads", "1", "--head-width", "8", "--contestants", "power", "--repeats", "1"]
    options = [*sizes, "--no-memory", "--csv", "-"]
    result = CliRunner().invoke(main, ["bench", "op", "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    assert [row["passes"] for row in csv.DictReader(StringIO(result.stdout))] == [FORWARD, BOTH]
    assert "K = V = 8, p = 2, forward" in result.stderr


def test_a_run_that_is_stopped_tells_what_it_has(
    make_benchmark: Callable[..., OpBenchmark], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, path = make_benchmark("power", "softmax-math"), tmp_path / "times.csv"

    def stop(subject: Subject, tokens: int, passes: str, timer: object) -> Row:
        if (subject.contestant.name, tokens) == ("softmax-math", 128):
            raise KeyboardInterrupt
        return Row(subject.contestant.name, tokens, Timing(1.0, 1.0, 1.0), more={"passes": passes})

    monkeypatch.setattr(Subject, "measure", stop)
    console = Console(file=StringIO(), width=80, record=True)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, console=console, progress=Console(quiet=True), csv_path=path)
    assert "128" in console.export_text()
    assert len(path.read_text().splitlines()) == 7
