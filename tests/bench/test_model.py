"""`zoo bench model` and `zoo bench decode` on the CPU, at tiny sizes; times themselves are never looked at."""

import csv
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from zoo.bench import model as model_bench
from zoo.bench.cold_start import measure_cold_start
from zoo.bench.decode import DecodeBenchmark, bytes_moved, made_up_state
from zoo.bench.engine import Row, run
from zoo.bench.model import ModelBenchmark
from zoo.bench.models import TrainingStep, check_mixers, load_documents, make_batches
from zoo.bench.profile import Kernel, kind_of, profile_step, share_of_work
from zoo.bench.timing import Ceilings, Timing, wall_timer
from zoo.builder import build, shrink
from zoo.cli import main
from zoo.data import Batches, load_corpus, write_shard
from zoo.errors import InputError
from zoo.recipe import Recipe, load_recipe
from zoo.states import state_bytes

CPU = torch.device("cpu")
TIMER = wall_timer(1)


@pytest.fixture
def recipe() -> Recipe:
    return shrink(load_recipe("gpt2-124m-rotary"))


@pytest.fixture
def make_benchmark(recipe: Recipe, ceilings: Ceilings) -> Callable[..., ModelBenchmark]:
    """A benchmark of models that are not compiled, with these mixers."""

    def make(*mixers: str, **options: object) -> ModelBenchmark:
        settings = {
            "lengths": (32,), "timer": TIMER, "ceilings": ceilings, "device": CPU, "step_tokens": 64, "modes": (False,),
        }  # fmt: skip
        return ModelBenchmark(recipe, mixers, **(settings | options))

    return make


def say() -> Console:
    return Console(file=StringIO(), width=80, record=True)


def test_a_run_prints_a_table_a_profile_and_writes_files(
    recipe: Recipe, make_benchmark: Callable[..., ModelBenchmark], tmp_path: Path
) -> None:
    benchmark = make_benchmark(
        "softmax", "gated-power", lengths=(16, 64), optimize=True, quadratic_limit=16, checkpoint_above=32, profile=True
    )
    console = say()
    found = run(
        benchmark, console=console, progress=Console(quiet=True), csv_path=tmp_path / "times.csv",
        plot_path=tmp_path / "times.svg",
    )  # fmt: skip
    assert [(row.name, row.tokens, row["batch_size"]) for row in found] == [
        ("softmax", 16, 4), ("gated-power", 16, 4), ("softmax", 64, 1), ("gated-power", 64, 1),
    ]  # fmt: skip
    assert [row.seconds is None for row in found] == [False, False, True, False]
    assert {row["checkpointing"] for row in found} == {"selective"}
    assert not any(row.absent for row in found)
    text = console.export_text()
    assert "kernel launches a layer, forward: " in text
    assert "zoo::power_attention" in text
    assert max(map(len, text.splitlines())) <= 80
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mixer"] for row in rows] == [row.name for row in found]
    assert {row["recipe"] for row in rows} == {recipe.name}
    assert {row["documents"] for row in rows} == {"packed"}
    assert (tmp_path / "times.svg").read_bytes().startswith(b"<?xml")


def test_shares_are_of_the_models_own_work(
    recipe: Recipe, make_benchmark: Callable[..., ModelBenchmark], ceilings: Ceilings
) -> None:
    (row,) = make_benchmark("gated-power", documents="one").rows(lambda _: None)
    assert row.seconds is not None
    assert row["documents"] == "one"
    assert row["tokens_per_second"] == pytest.approx(64 / row.seconds)
    flops = 3 * 2 * build(recipe, mixer="gated-power").flops(32)
    assert row["model_flops_share"] == pytest.approx(flops / row.seconds / ceilings.matmul)


def test_who_has_no_memory_says_what_to_change_and_the_others_go_on(
    make_benchmark: Callable[..., ModelBenchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model_bench.TrainingStep

    def step(recipe: Recipe, *rest: object, **options: object) -> object:
        if recipe.mixer.name == "linear":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(recipe, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model_bench, "TrainingStep", step)
    benchmark = make_benchmark("linear", "power")
    rows = list(benchmark.rows(lambda _: None))
    assert rows[1].seconds is not None
    assert rows[0].absent == (
        "out of memory at training.context_length 32, training.batch_size 2, training.checkpointing none: "
        "training.checkpointing=selective keeps a fraction; a smaller training.batch_size (training.accumulate makes "
        "up for it) or a shorter training.context_length"
    )
    console = say()
    benchmark.report(rows, console)
    assert "memory" in console.export_text()


def test_tables_compare_mixers_modes_and_lengths(make_benchmark: Callable[..., ModelBenchmark]) -> None:
    def row(mixer: str, tokens: int, compiled: bool, seconds: float) -> Row:
        more = {
            "batch_size": 65536 // tokens, "compiled": compiled, "checkpointing": "none", "documents": "packed",
            "tokens_per_second": 65536 / seconds, "model_flops_share": 0.4, "first_seconds": 9.0,
            "peak_bytes": 30 * 2**30, "reserved_bytes": 31 * 2**30,
        }  # fmt: skip
        return Row(mixer, tokens, Timing(seconds, seconds, seconds), more=more)

    rows = [
        row("softmax-cudnn", 8192, True, 0.2), row("gated-power", 8192, True, 0.1),
        row("gated-power", 8192, False, 0.16),
        row("softmax-cudnn", 65536, True, 0.5), row("gated-power", 65536, True, 0.11),
    ]  # fmt: skip
    console = say()
    make_benchmark("gated-power").report(rows, console)
    lines = console.export_text().splitlines()
    long = ["gated-power", "64k", "1", "110", "595,782", "1.678", "4.55", "40.0", "30.0"]
    assert long in [line.split() for line in lines]
    assert "gated-power at T = 8,192: compiled is 1.60 x eager" in lines
    assert "gated-power: a token at T = 64k takes 1.10 x that at 8k" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("attend_kernel", "op"),
        ("columns_kernel_2", "op"),
        ("differentiate_kernel", "op"),
        ("state_sums_kernel", "op"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x64x64", "op"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, cutlass::bfloat16_t>>", "op"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "op"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_bias_TNT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>", "matmul"),
        ("triton_tem_fused_addmm_3", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16>", "matmul"),
        ("aten::addmm", "matmul"),
        ("aten::addmm_", "other"),
        ("triton_poi_fused_add_gelu_4", "other"),
        ("triton_red_fused_native_layer_norm_0", "other"),
        ("Memset (Device)", "other"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_share_of_work() -> None:
    kernels = [Kernel("nvjet_tst", 10, 3.0), Kernel("attend_kernel", 2, 4.0), Kernel("triton_poi_fused_add", 5, 1.0)]
    assert share_of_work(kernels) == pytest.approx(7 / 8)


def test_unknown_mixers_are_refused() -> None:
    assert check_mixers(["softmax-cudnn", "power", "power"]) == ("softmax-cudnn", "power")
    with pytest.raises(InputError, match=r"was 'gated-powr' \(did you mean 'gated-power'\?\)"):
        check_mixers(["gated-powr"])


def test_the_command_measures_eager_models(tmp_path: Path) -> None:
    sizes = ["model.layers=1", "model.width=16", "model.heads=1", "model.vocab_size=61", "model.feed_forward_width=16"]
    options = ["--mixers", "linear", "--lengths", "8", "--tokens", "16", "--no-compiled", "--eager", "--repeats", "1"]
    command = ["bench", "model", "gpt2-124m-rotary", *sizes, *options, "--device", "cpu"]
    result = CliRunner().invoke(main, [*command, "--documents", "one"])
    assert result.exit_code == 0, result.output
    assert "linear eager" in result.output
    result = CliRunner().invoke(main, command)
    assert result.stderr.startswith("Error: model.vocab_size: expected at least the 257 of the recipe's data, or undiv")
    result = CliRunner().invoke(main, ["bench", "model", "--no-compiled"])
    assert result.stderr == "Error: compiled, eager: expected at least one of them\n"


def test_decoding_is_measured_at_every_position(recipe: Recipe, ceilings: Ceilings, tmp_path: Path) -> None:
    benchmark = DecodeBenchmark(
        recipe, ("softmax", "gated-power"), (10, 70), TIMER, ceilings, CPU, torch.float32, 2, runs=2
    )
    console = say()
    found = run(
        benchmark, console=console, progress=Console(quiet=True), csv_path=tmp_path / "times.csv",
        plot_path=tmp_path / "times.png",
    )  # fmt: skip
    assert [(row.name, row.tokens, row.absent) for row in found] == [
        ("softmax", 10, ""), ("gated-power", 10, ""), ("softmax", 70, ""), ("gated-power", 70, ""),
    ]  # fmt: skip
    assert all(row["tokens_per_second"] == pytest.approx(2 / row.seconds) for row in found if row.seconds)
    assert "gated-power: a step at 70 takes " in console.export_text()
    with (tmp_path / "times.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mixer", ["softmax", "sliding-window", "gated-power", "mamba2", "rwkv7"])
def test_made_up_states_are_those_of_a_position(recipe: Recipe, mixer: str) -> None:
    model = build(recipe, mixer=mixer)
    state = made_up_state(model, 2, 1000, 5)
    assert state.position.tolist() == [1000, 1000]
    with torch.no_grad():
        assert model.step(torch.zeros(2, dtype=torch.int64), state).isfinite().all()
    assert state.position.tolist() == [1001, 1001]
    assert model.init_state(2, max_len=1005).layers[0][0][0].shape == state.layers[0][0][0].shape


def test_what_a_step_moves_is_counted(recipe: Recipe) -> None:
    softmax = build(recipe, mixer="softmax")
    weights = sum(parameter.nbytes for parameter in softmax.parameters())
    state = made_up_state(softmax, 2, 100, 28)
    cache = sum(mixer.keys.nbytes + mixer.values.nbytes for mixer, *_ in state.layers)
    assert bytes_moved(softmax, state, 100) == weights + cache // 128 * 101
    power = build(recipe, mixer="power")
    weights = sum(parameter.nbytes for parameter in power.parameters())
    state = made_up_state(power, 2, 10, 28)
    journals = [mixer for mixer, *_ in state.layers]
    assert all(10 < journal.slots - 1 < 10_000 for journal in journals)
    token = sum(x.nbytes // x.shape[1] for journal in journals for x in journal[2:5])
    assert bytes_moved(power, state, 10) == weights + 11 * token
    state = made_up_state(power, 2, 10_000, 28)
    journals = [mixer for mixer, *_ in state.layers]
    assert all((journal.folded == 10_000).all() for journal in journals)
    sums = state_bytes(tuple(journal.sums for journal in journals))
    assert bytes_moved(power, state, 10_000) == weights + 9 * token + sums * 18 // 16  # 16 tokens fold at a time


def test_documents_are_those_that_training_sees(recipe: Recipe, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(200):
        (text / f"{number}.txt").write_text(f"a document, number {number}")
    marked = recipe.override([f"data.source={text}", "training.batch_size=2", "training.context_length=64"])
    batches = make_batches(marked, load_documents(marked), CPU)
    corpus = load_corpus(marked.data)
    for step, batch in enumerate(batches):
        expected = Batches(corpus.train, 2, 64, marked.training.seed).batch(step)
        assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))
        assert batch[2].sum() > 2
    step = TrainingStep(marked, batches, CPU, compiled=False, optimize=False)
    losses = [step.forward().item() for _ in batches]
    tokens, targets, resets = batches[0]
    assert losses[0] == pytest.approx(step.model.loss(tokens, targets, resets=resets).item(), rel=1e-5)
    assert losses[0] != pytest.approx(step.model.loss(tokens, targets).item(), rel=1e-6)
    assert losses[0] == pytest.approx(step.forward().item(), rel=1e-6)  # the batches come again


def test_documents_that_are_not_marked_are_one(recipe: Recipe, tmp_path: Path) -> None:
    write_shard(tmp_path / "text.bin", [number % 61 for number in range(5000)])
    data = [f"data.source={tmp_path / 'text.bin'}", "data.tokenizer=none", "data.vocab_size=61"]
    benchmark = ModelBenchmark(
        recipe.override(data), ("linear",), (32,), TIMER, Ceilings(), CPU, step_tokens=64, modes=(False,)
    )
    (row,) = benchmark.rows(lambda _: None)
    assert row.seconds is not None
    assert row["documents"] == "one"


@pytest.mark.slow
def test_a_cold_start_is_timed_in_stages(recipe: Recipe) -> None:
    small = recipe.override(["model.layers=1", "training.context_length=16", "training.batch_size=1"])
    imported, built, stepped = measure_cold_start(small, "softmax", "cpu")
    assert 0 < imported < built < stepped


def test_a_cold_start_that_fails_says_why(recipe: Recipe) -> None:
    with pytest.raises(InputError, match=r"cold start: the first step failed: .*nowhere"):
        measure_cold_start(recipe, "softmax", "nowhere")


def test_profiles_count_what_a_layer_adds(recipe: Recipe) -> None:
    one = recipe.override(["training.batch_size=1"])
    step = TrainingStep(one, make_batches(one, None, CPU), CPU, compiled=False, optimize=False)
    found = profile_step(step, compiled=False)
    assert found.launches_per_layer is not None
    assert 1 < found.launches_per_layer < sum(kernel.launches for kernel in found.forward)
    linears = sum(isinstance(module, nn.Linear) for module in step.model.blocks[0].modules())
    assert sum(kernel.launches for kernel in found.forward if kernel.name == "aten::addmm") == 2 * linears
