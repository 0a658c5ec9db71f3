"""The table of block sizes, and the search that fills it."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zoo import tuning
from zoo.cli import main
from zoo.kernels.errors import InputError
from zoo.kernels.launch import Launch
from zoo.kernels.power.triton import configs
from zoo.kernels.power.triton.configs import TABLE, BlockSizes, LaunchSizes, Row, block_sizes, read_table, using
from zoo.kernels.power.triton.tune import Case, trials, tune, tuned_kernels, write_row

CASE = Case("bfloat16", 64, 64, 2, "triton")


def bfloat16(width: int = 64) -> torch.Tensor:
    return torch.zeros(1, 1, 1, width, dtype=torch.bfloat16)


def test_every_width_power_and_dtype_has_sizes() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for K in (16, 32, 64, 128):
            for V in (16, 32, 64, 128):
                for p in (1, 2, 3, 4):
                    found = block_sizes(torch.zeros(1, dtype=dtype), K, V, p, hopper=False)
                    assert found.chunk % max(launch.block for launch in found.launches) == 0
                    assert found.inner in ((K,) if p < 3 else (2, 4, 8, 16))
                    assert all(found.high_outputs) == all(found.high_gradients) == (p > 2)


def test_the_nearest_row_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "blocks.csv"
    shutil.copy(TABLE, table)
    exact = block_sizes(bfloat16(), 64, 64, 2, hopper=False)
    newer = Row("sm_100", "triton", "bfloat16", 64, 64, 2, exact._replace(chunk=4096))
    amd = Row("gfx942", "triton", "bfloat16", 64, 64, 2, exact._replace(chunk=256))
    for row in (newer, amd):
        write_row(table, row)
    monkeypatch.setattr(configs, "TABLE", table)
    configs._look_up.cache_clear()
    for gpu, chunk in (("sm_90", 1024), ("sm_86", 1024), ("sm_120", 4096), ("gfx950", 256), ("gfx90a", 256)):
        monkeypatch.setattr(configs, "architecture", lambda _x, gpu=gpu: gpu)
        assert block_sizes(bfloat16(), 64, 64, 2, hopper=False).chunk == chunk, gpu
    monkeypatch.setattr(configs, "architecture", lambda _x: "sm_90")
    wide = block_sizes(bfloat16(), 128, 128, 2, hopper=False)
    assert block_sizes(bfloat16(), 32, 128, 2, hopper=False) == wide._replace(inner=32)  # of two as near, the wider
    narrow = block_sizes(bfloat16(), 16, 16, 4, hopper=False)
    assert block_sizes(bfloat16(), 64, 64, 4, hopper=False) == narrow._replace(inner=4)  # p before widths
    configs._look_up.cache_clear()


def test_the_search_finds_the_fastest_that_runs() -> None:
    start = block_sizes(bfloat16(), 64, 64, 2, hopper=False)
    best = {
        "sums": LaunchSizes(32, 0, 4, 2),
        "output": LaunchSizes(64, 64, 8, 3),
        "query_gradient": start.query_gradient,
    }
    said: list[str] = []

    def measure(sizes: BlockSizes, kernel: str, tokens: int) -> float:
        if kernel == "all":
            chunks = -(-tokens // sizes.chunk) if tokens > sizes.alone else 1
            # Chunks cost a state each, and attention within them is quadratic.
            return chunks * 700_000 + chunks * (tokens / chunks) ** 2
        launch = getattr(sizes, kernel)
        if launch.block == 128 and kernel == "output":
            return math.inf  # does not fit
        return 1.0 if launch == best.get(kernel) else 2.0

    found = tune(CASE, start, tuned_kernels(CASE), 65536, measure, said.append)
    assert (found.sums, found.output, found.query_gradient) == tuple(best.values())
    assert found.key_gradient == start.key_gradient
    assert (found.chunk, found.alone) == (1024, 1024)
    assert [line.partition(":")[0] for line in said] == [*tuned_kernels(CASE), "chunk", "one chunk alone"]


@pytest.mark.parametrize(("longer", "chunk"), [(1.005, 1024), (1.02, 512)])
def test_of_chunks_that_tie_the_longest_is_taken(longer: float, chunk: int) -> None:
    times = {256: 2.0, 512: 1.0, 1024: longer, 2048: 2.0}

    def measure(sizes: BlockSizes, kernel: str, _tokens: int) -> float:
        return times[sizes.chunk] if kernel == "all" else 1.0

    start = block_sizes(bfloat16(), 64, 64, 2, hopper=False)
    assert tune(CASE, start, tuned_kernels(CASE), 65536, measure, str).chunk == chunk


def test_a_row_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    table = tmp_path / "blocks.csv"
    shutil.copy(TABLE, table)
    rows = read_table(table)
    write_row(table, rows[0])
    assert table.read_text() == TABLE.read_text()
    changed = rows[3]._replace(sizes=rows[3].sizes._replace(chunk=512))
    write_row(table, changed)
    assert read_table(table) == (*rows[:3], changed, *rows[4:])
    assert not list(tmp_path.glob("*.partial"))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    table = tmp_path / "blocks.csv"
    whole = TABLE.read_text()
    table.write_text(whole + "sm_90,triton,bfloat16,64\n")
    expected = rf"blocks\.csv, line {whole.count(chr(10)) + 1}: expected a row of block sizes, was 'sm_90,triton"
    with pytest.raises(InputError, match=expected):
        read_table(table)


def test_wanted_sizes_hold_until_the_block_ends() -> None:
    before = block_sizes(bfloat16(), 64, 64, 2, hopper=False)
    with using(before._replace(chunk=512)):
        assert block_sizes(bfloat16(), 64, 64, 2, hopper=False).chunk == 512
    assert block_sizes(bfloat16(), 64, 64, 2, hopper=False) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--power", "5"], "--power: expected one of 1, 2, 3, 4, was 5"),
     (["--head-width", "48"], "--head-width: expected one of 16, 32, 64, 128, was 48"),
     (["--kernels", "sums,scores"], "--kernels: expected one of sums, output, query_gradient, key_gradient,"),
     (["--dtype", "int8"], "--dtype: expected one of bfloat16, float16, float32, was int8")],
)  # fmt: skip
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["tune", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_a_gpu_is_needed() -> None:
    result = CliRunner().invoke(main, ["tune"])
    assert result.exit_code == 1
    assert "needs a GPU" in result.output


@pytest.mark.parametrize("p", [1, 2, 3])
def test_every_size_that_is_tried_is_compiled_beforehand(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Launch] = []
    monkeypatch.setattr(tuning, "compile_what_fits", lambda launches, *_: compiled.extend(launches))
    case = Case("bfloat16", 32, 32, p, "triton")
    start = block_sizes(bfloat16(32), 32, 32, p, hopper=False)
    inputs = [torch.zeros(1, 4096, 2, 32, dtype=torch.bfloat16) for _ in range(3)]
    tuning._compile(case, start, tuned_kernels(case), [*inputs, torch.zeros(1, 4096, 2)])
    kinds = {(launch.kernel.__name__, *launch.constants.values(), *launch.options.values()) for launch in compiled}
    for kernel in tuned_kernels(case):
        sizes = trials(case, start, kernel)
        name = {"sums": {1: "linear_sums", 2: "state_sums", 3: "high_sums"}[p]}.get(kernel, kernel)
        launches = {kind[1:] for kind in kinds if kind[0] == f"{name}_kernel"}
        assert len(launches) >= len(sizes), kernel
