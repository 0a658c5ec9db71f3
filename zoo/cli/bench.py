"""`zoo bench`: benchmarks that print a table, and a CSV file and a plot where asked for."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.options import Names, Numbers, csv_option, names, plot_option, whole_numbers

if TYPE_CHECKING:
    from zoo.bench.engine import Benchmark

__all__ = ["bench"]

_OP_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpu": {
        "lengths": tuple(1024 * 4**step for step in range(6)), "head_widths": (64, 128), "powers": (1, 2),
        "gated": True, "dtype": "bfloat16", "quadratic_limit": 262144, "repeats": 30,
        "contestants": ("power", "softmax-cudnn", "softmax-flash", "retention", "fla"),
    },
    "cpu": {
        "lengths": tuple(1024 * 2**step for step in range(7)), "head_widths": (32,), "powers": (2,),
        "gated": False, "dtype": "float32", "quadratic_limit": 16384, "repeats": 5,
        "contestants": ("power", "softmax"),
    },
}  # fmt: skip
"""Of `zoo bench op`, by where it runs."""
_OTHER_OPS: dict[str, Any] = {"lengths": (4096, 16384, 65536), "head_widths": (64,), "powers": (0,), "gated": False}
"""What differs for ops without a power."""
_DTYPES = click.Choice(["bfloat16", "float16", "float32"])


@click.group()
def bench() -> None:
    """Measure speed and memory, side by side in one run.

    Absolute times mean something only on a machine that does nothing else; ratios from one run are robust.
    """


@bench.command("op")
@click.option("--op", default="power", help="Or gla, delta, gated-delta, kda, rwkv7, packed-softmax.  [default: power]")
@click.option("--lengths", callback=whole_numbers, help="[default: 1024 to 1048576 by 4; on a CPU to 65536 by 2]")
@click.option("--head-width", "head_widths", callback=whole_numbers, help="K = V.  [default: 64,128; on a CPU 32]")
@click.option("--power", "powers", callback=whole_numbers, help="[default: 1,2; on a CPU 2]")
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1))
@click.option("--gated/--ungated", default=None, help="[default: gated; on a CPU ungated]")
@click.option("--dtype", type=_DTYPES, help="[default: bfloat16; on a CPU float32]")
@click.option(
    "--contestants", callback=names,
    help="With commas.  [default: all but power-static, softmax and softmax-math; on a CPU power,softmax]",
)  # fmt: skip
@click.option("--documents", default=3, show_default=True, type=click.IntRange(1), help="In a row of packed-softmax.")
@click.option("--quadratic-limit", type=int, help="Longest for softmax.  [default: 262144; on a CPU 16384]")
@click.option("--repeats", type=click.IntRange(1), help="About so many timed runs.  [default: 30; on a CPU 5]")
@click.option("--graph/--no-graph", default=False, show_default=True, help="Time CUDA-graph replays, not launches.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Also measure peak memory on a CPU.")
@click.option("--device", default="cuda", show_default=True, help="Or cpu, where fewer contestants can run.")
@csv_option
@plot_option
def op_command(graph: bool, device: str, csv_path: Path | None, plot_path: Path | None, **options: Any) -> None:
    """An op beside its peers: forward, and forward and backward, by sequence length.

    Contestants of power attention: power (compiled once for all lengths), power-static (compiled for each), softmax
    (scaled_dot_product_attention), softmax-cudnn, softmax-flash and softmax-math (the same with one backend each),
    retention (the package of that name, p = 2) and fla (simple gated linear attention of flash-linear-attention,
    p = 1). Of the delta family: ours, fla (flash-linear-attention), and for rwkv7 chunked (ours in PyTorch). Of softmax
    over documents packed into rows: ours with the making of its block mask, varlen (torch.nn.attention), and a mask of
    all pairs. What is not installed or refuses to run is left out, and why is said.

    \b
    Examples:
      zoo bench op --head-width 64 --power 2 --lengths 1024,8192,65536 --plot times.png
      zoo bench op --device cpu --lengths 1024,4096,16384
      zoo bench op --op gated-delta --graph --lengths 32768 --head-width 128
      zoo bench op --op packed-softmax --heads 12 --documents 3
    """
    import torch

    from zoo.bench.family import OPS
    from zoo.bench.op import OpBenchmark
    from zoo.bench.subjects import Case, select
    from zoo.bench.timing import ceilings_on, op_timer
    from zoo.errors import InputError
    from zoo.report.files import check_outputs
    from zoo.training.distributed import choose_device

    on_gpu = device.startswith("cuda")
    select("op", [options["op"]], OPS)
    defaults = _OP_DEFAULTS["gpu" if on_gpu else "cpu"]
    if options["op"] != "power":
        defaults = {**defaults, **_OTHER_OPS, "contestants": tuple(OPS[options["op"]])}
    chosen = {**options, **{key: value for key, value in defaults.items() if options[key] is None}}
    select("contestants", chosen["contestants"], OPS[options["op"]])
    check_outputs(csv=csv_path, plot=plot_path)
    if on_gpu and (not torch.cuda.is_available() or find_spec("triton") is None):
        raise InputError("zoo bench op needs a GPU that torch finds, and Triton; --device cpu runs without")
    if graph and not on_gpu:
        raise InputError(f"graph: expected a GPU, which has CUDA graphs, was --device {device}")
    place = choose_device(device)
    sizes = {key: chosen.pop(key) for key in ("batch_size", "heads", "gated", "documents")}
    case = Case(device=str(place), dtype=getattr(torch, chosen.pop("dtype")), **sizes)
    timer = op_timer(chosen.pop("repeats"), place, graph=graph)
    benchmark = OpBenchmark(case, **chosen, timer=timer, ceilings=ceilings_on(place), graph=graph)
    _run(benchmark, csv_path, plot_path)


@bench.command()
@click.argument("recipe", default="gpt2-124m-rotary")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mixers", default="softmax,linear,gated-power", show_default=True, callback=names, help="With commas.")
@click.option("--lengths", default="4096,8192,16384,65536", show_default=True, callback=whole_numbers)
@click.option(
    "--tokens", "step_tokens", default=65536, show_default=True, type=click.IntRange(1),
    help="Of a step, or one sequence.",
)  # fmt: skip
@click.option(
    "--documents", default="packed", show_default=True, type=click.Choice(["packed", "one"]),
    help="packed: the recipe's data, with documents that end within sequences; one: random tokens, not divided.",
)  # fmt: skip
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="Measure compiled models.")
@click.option("--eager/--no-eager", default=False, show_default=True, help="Measure models that are not compiled.")
@click.option(
    "--optimizer/--no-optimizer", "optimize", default=False, show_default=True, help="With clipping and AdamW."
)
@click.option("--checkpoint-above", default=131072, show_default=True, help="Checkpoint steps of more tokens.")
@click.option("--quadratic-limit", default=131072, show_default=True, help="Longest sequence to run softmax at.")
@click.option("--profile", is_flag=True, help="Print kernels a layer, and shares of time.")
@click.option("--cold-start", is_flag=True, help="Only time fresh processes up to their first training step.")
@click.option("--repeats", default=10, show_default=True, type=click.IntRange(1), help="At most so many timed steps.")
@click.option("--device", help="[default: a GPU if there is one]")
@csv_option
@plot_option
def model(
    recipe: str, overrides: Names, mixers: Names, compiled: bool, eager: bool, cold_start: bool,
    repeats: int, device: str | None, csv_path: Path | None, plot_path: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Train one model with several mixers, over context lengths at a fixed number of tokens a step.

    RECIPE and KEY=VALUE are as for `zoo train`, and so are the steps, on the recipe's data. Mixers are those of
    recipes, and softmax-cudnn and softmax-flash: softmax through one backend of scaled_dot_product_attention, which
    may refuse packed documents. `% of matmul` is the model's FLOPs, without what checkpointing computes again, beside
    the rate of a large matrix product in the same run; `x first` is beside the first mixer at that length.

    \b
    Examples:
      zoo bench model --lengths 8192,65536 --profile
      zoo bench model gpt2-124m-rotary mixer.p=2 --mixers gated-power --lengths 524288 --optimizer
      zoo bench model --mixers gated-power --lengths 8192 --eager
      zoo bench model --mixers softmax-cudnn,gated-power --documents one
    """
    from zoo.bench.model import ModelBenchmark, print_cold_starts
    from zoo.bench.models import check_mixers
    from zoo.bench.timing import Ceilings, ceilings_on, step_timer
    from zoo.errors import InputError
    from zoo.recipe import load_recipe
    from zoo.report.files import check_outputs
    from zoo.report.tables import console_beside
    from zoo.training.distributed import choose_device

    place = choose_device(device)
    modes = tuple(mode for mode, wanted in ((True, compiled), (False, eager)) if wanted)
    if not modes:
        raise InputError("compiled, eager: expected at least one of them")
    loaded, checked = load_recipe(recipe, overrides), check_mixers(mixers)
    check_outputs(csv=csv_path, plot=plot_path)
    benchmark = ModelBenchmark(
        loaded, checked, timer=step_timer(repeats, place), device=place, modes=modes, **options,
        ceilings=Ceilings() if cold_start else ceilings_on(place),
    )  # fmt: skip
    if cold_start:
        print_cold_starts(benchmark, console_beside())
    else:
        _run(benchmark, csv_path, plot_path)


@bench.command()
@click.argument("recipe", default="gpt2-124m-rotary")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mixers", default="softmax,linear,gated-power", show_default=True, callback=names, help="With commas.")
@click.option("--positions", default="1000,65536,1000000", show_default=True, callback=whole_numbers)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: bfloat16 on a GPU]")
@click.option("--prefill", type=click.IntRange(1), help="Read random tokens, so many at a time, for real states.")
@click.option("--repeats", default=10, show_default=True, type=click.IntRange(1), help="At most so many timed runs.")
@click.option("--device", help="[default: a GPU if there is one]")
@csv_option
@plot_option
def decode(
    recipe: str, overrides: Names, mixers: Names, dtype: str | None, repeats: int, device: str | None,
    csv_path: Path | None, plot_path: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Decode with one model and several mixers, far into a sequence: after so many tokens.

    States are made up, unless prompts are to be read: caches full of random numbers, sums of a short prompt. A step
    gives a token for each row, chosen on the device; on a GPU steps are replayed from a CUDA graph. `% of copy` is
    weights and state read once, and what changes of the state written once, beside a large copy in the same run.

    \b
    Examples:
      zoo bench decode --positions 1000,65536
      zoo bench decode --mixers gated-power --positions 1000,1000000 --batch-size 1
    """
    import torch

    from zoo.bench.decode import DecodeBenchmark
    from zoo.bench.models import check_mixers
    from zoo.bench.timing import ceilings_on, step_timer
    from zoo.recipe import load_recipe
    from zoo.report.files import check_outputs
    from zoo.training.distributed import choose_device

    place = choose_device(device)
    chosen = dtype or ("bfloat16" if place.type == "cuda" else "float32")
    loaded, checked = load_recipe(recipe, overrides), check_mixers(mixers)
    check_outputs(csv=csv_path, plot=plot_path)
    benchmark = DecodeBenchmark(
        loaded, checked, timer=step_timer(repeats, place), ceilings=ceilings_on(place), device=place,
        dtype=getattr(torch, chosen), runs=repeats + 1, **options,
    )  # fmt: skip
    _run(benchmark, csv_path, plot_path)


@bench.command()
@click.option("--steps", default=20_000, show_default=True, type=click.IntRange(1), help="Tokens to decode.")
@click.option("--at", default="1,100,1000,10000,20000", show_default=True, callback=whole_numbers, help="Compare here.")
@click.option("--ops", callback=names, help="Which ones, with commas, such as p1,gated-p2,rwkv7.  [default: all]")
@click.option("--heads", default=4, show_default=True, type=click.IntRange(1))
@click.option("--head-width", default=16, show_default=True, type=click.IntRange(1), help="K, and V as well.")
@click.option("--batch-size", default=2, show_default=True, type=click.IntRange(1))
@click.option("--dtype", default="bfloat16", show_default=True, type=_DTYPES)
@click.option("--device", default="cpu", show_default=True, help="For example cuda.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@csv_option
def state(
    steps: int,
    at: Numbers,
    ops: Names | None,
    dtype: str,
    seed: int,
    csv_path: Path | None,
    **sizes: Any,
) -> None:
    """How exact states stay over many decoded tokens, beside float64.

    Each op is stepped in place from an empty state; its output and its float32 state are compared with those of the
    recurrence in float64 on the same inputs, and so is a recurrence in plain float32.

    Example: zoo bench state --steps 20000 --ops p2,gated-p2
    """
    import torch

    from zoo.bench.state import StateBenchmark, select_recurrences
    from zoo.bench.subjects import Case

    case = Case(dtype=getattr(torch, dtype), **sizes)
    positions = tuple(sorted({*(position for position in at if position < steps), steps}))
    _run(StateBenchmark(case, select_recurrences(case, ops), positions, seed), csv_path)


def _run(benchmark: "Benchmark", csv_path: Path | None, plot_path: Path | None = None) -> None:
    """Run a benchmark; its tables make room for a file on standard output."""
    from zoo.bench.engine import run
    from zoo.report.tables import GuardedConsole, console_beside

    console = console_beside(csv_path, plot_path)
    run(benchmark, console=console, progress=GuardedConsole(stderr=True), csv_path=csv_path, plot_path=plot_path)
