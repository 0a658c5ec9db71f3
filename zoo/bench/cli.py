"""`zoo bench`: benchmarks that print a table, and a CSV file and a plot where asked for."""

from importlib.util import find_spec
from pathlib import Path

import click

from zoo.bench.model_cli import decode, model
from zoo.bench.rwkv7_cli import rwkv7
from zoo.bench.state_cli import state
from zoo.cli.options import whole_numbers

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure speed and memory, side by side in one run.

    Absolute times mean something only on a machine that does nothing else; ratios from one run are robust.
    """


bench.add_command(model)
bench.add_command(decode)
bench.add_command(state)
bench.add_command(rwkv7)


@bench.command()
@click.option("--lengths", default="1024,2048,4096,8192,16384,32768,65536", show_default=True, callback=whole_numbers)
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--head-width", default=32, show_default=True, type=click.IntRange(1), help="K, and V as well.")
@click.option("--power", "p", default=2, show_default=True, type=click.IntRange(1, 4))
@click.option("--gated/--ungated", default=False, show_default=True)
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--softmax-limit", default=16384, show_default=True, help="Longest sequence to run softmax at.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Timed runs; the median counts.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Also measure peak memory, on the CPU.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
def attention(
    lengths: list[int],
    heads: int,
    head_width: int,
    p: int,
    gated: bool,
    batch_size: int,
    softmax_limit: int,
    repeats: int,
    memory: bool,
    csv_path: Path | None,
) -> None:
    """Power attention beside softmax attention: forward and backward, float32, by sequence length.

    Power attention runs compiled; softmax is PyTorch's scaled_dot_product_attention. A ratio above 1 says that power
    attention is faster.

    Example: zoo bench attention --lengths 1024,4096,16384 --power 2
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from zoo.bench.attention import AttentionCase, measure_attention, measure_memory, write_csv

    case = AttentionCase(batch_size, heads, head_width, p, gated)
    console = Console()
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; B={batch_size}, H={heads}, K=V={head_width}, "
        f"p={p}, {'gated' if gated else 'ungated'}, float32, forward + backward, median of {repeats}"
    )
    measurements = measure_attention(case, lengths, softmax_limit=softmax_limit, repeats=repeats)
    peaks = measure_memory(case, lengths) if memory else {}
    # Narrow enough for eighty columns.
    table = Table("tokens", "power ms", "softmax ms", "ratio", "us/token", "peak MiB", "KiB/token")
    for column in table.columns:
        column.justify = "right"
    for m in measurements:
        peak = peaks.get(m.tokens)
        table.add_row(
            f"{m.tokens:,}",
            f"{m.power_seconds * 1e3:.1f}",
            "-" if m.softmax_seconds is None else f"{m.softmax_seconds * 1e3:.1f}",
            "-" if m.ratio is None else f"{m.ratio:.2f}",
            f"{m.power_microseconds_per_token:.2f}",
            "-" if peak is None else f"{peak / 2**20:.0f}",
            "-" if peak is None else f"{peak / 2**10 / m.tokens:.1f}",
        )
    console.print(table)
    console.print("ratio: softmax / power, above 1 power is faster; columns after it are of power")
    if csv_path is not None:
        write_csv(measurements, csv_path)
        console.print(f"CSV: {csv_path}")


@bench.command()
@click.option("--lengths", default="1024,4096,16384,65536,262144,1048576", show_default=True, callback=whole_numbers)
@click.option("--head-width", default="64,128", show_default=True, callback=whole_numbers, help="K, and V as well.")
@click.option("--power", "powers", default="1,2", show_default=True, callback=whole_numbers)
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--gated/--ungated", default=True, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float16", "float32"]))
@click.option("--contestants", help="Who takes part, with commas.  [default: all but power-static and softmax-math]")
@click.option("--quadratic-limit", default=262144, show_default=True, help="Longest sequence to run softmax at.")
@click.option("--repeats", default=30, show_default=True, type=click.IntRange(1), help="About so many timed runs.")
@click.option("--graph/--no-graph", default=False, show_default=True, help="Time CUDA-graph replays, not launches.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Also draw this PNG or SVG.")
def op(
    lengths: list[int],
    head_width: list[int],
    powers: list[int],
    heads: int,
    batch_size: int,
    gated: bool,
    dtype: str,
    contestants: str | None,
    quadratic_limit: int,
    repeats: int,
    graph: bool,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Power attention on a GPU beside its peers: forward, and forward and backward, by sequence length.

    Contestants: power (compiled once for all lengths), power-static (compiled for each length), softmax-cudnn,
    softmax-flash and softmax-math (scaled_dot_product_attention with one backend each), retention (the package of that
    name, p = 2) and fla (simple gated linear attention of flash-linear-attention, p = 1). What is not installed or
    refuses to run is left out, and why is said.

    Example: zoo bench op --head-width 64 --power 2 --lengths 1024,8192,65536 --plot times.png
    """
    import torch
    from rich.console import Console

    from zoo.bench.contestants import DEFAULT_CONTESTANTS, select_contestants
    from zoo.bench.op import OpBenchmark
    from zoo.bench.op_run import check_files, run_op_benchmark
    from zoo.bench.timing import gpu_timer, measure_ceilings
    from zoo.errors import InputError

    names = DEFAULT_CONTESTANTS if contestants is None else [name.strip() for name in contestants.split(",")]
    benchmark = OpBenchmark(
        tuple(lengths), tuple(head_width), tuple(powers), tuple(select_contestants(names)), batch_size, heads, gated,
        getattr(torch, dtype), quadratic_limit=quadratic_limit,
    )  # fmt: skip
    check_files(csv_path, plot_path)
    if not torch.cuda.is_available() or find_spec("triton") is None:
        raise InputError("zoo bench op needs a GPU that torch finds, and Triton; zoo bench attention runs on a CPU")
    ceilings = measure_ceilings(gpu_timer(repeats), benchmark.device)
    run_op_benchmark(
        benchmark, gpu_timer(repeats, graph=graph), ceilings,
        console=Console(), progress=Console(stderr=True), graph=graph, csv_path=csv_path, plot_path=plot_path,
    )  # fmt: skip
