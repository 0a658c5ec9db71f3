"""`zoo bench model` and `zoo bench decode`: whole models with several mixers."""

from pathlib import Path

import click

from zoo.cli.options import whole_numbers

__all__ = ["decode", "model"]


@click.command()
@click.argument("recipe", default="gpt2-124m-rotary")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mixers", default="softmax-cudnn,linear,gated-power", show_default=True, help="With commas.")
@click.option("--lengths", default="4096,8192,16384,65536", show_default=True, callback=whole_numbers)
@click.option("--tokens", default=65536, show_default=True, type=click.IntRange(1), help="Of a step, or one sequence.")
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="Measure compiled models.")
@click.option("--eager/--no-eager", default=False, show_default=True, help="Measure models that are not compiled.")
@click.option("--optimizer/--no-optimizer", default=False, show_default=True, help="With clipping and AdamW.")
@click.option("--checkpoint-above", default=131072, show_default=True, help="Checkpoint steps of more tokens.")
@click.option("--quadratic-limit", default=131072, show_default=True, help="Longest sequence to run softmax at.")
@click.option("--profile", is_flag=True, help="Print kernels a layer, and shares of time.")
@click.option("--cold-start", is_flag=True, help="Only time fresh processes up to their first training step.")
@click.option("--repeats", default=10, show_default=True, type=click.IntRange(1), help="At most so many timed steps.")
@click.option("--device", help="[default: a GPU if there is one]")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Also draw this PNG or SVG.")
def model(
    recipe: str,
    overrides: tuple[str, ...],
    mixers: str,
    lengths: list[int],
    tokens: int,
    compiled: bool,
    eager: bool,
    optimizer: bool,
    checkpoint_above: int,
    quadratic_limit: int,
    profile: bool,
    cold_start: bool,
    repeats: int,
    device: str | None,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Train one model with several mixers, over context lengths at a fixed number of tokens a step.

    RECIPE and KEY=VALUE are as for `zoo train`. Mixers are those of recipes, and softmax-cudnn and softmax-flash:
    softmax through one backend of scaled_dot_product_attention. `% of matmul` is the model's FLOPs, without what
    checkpointing computes again, beside the rate of a large matrix product in the same run; `x first` is beside the
    first mixer at that length.

    \b
    Examples:
      zoo bench model --lengths 8192,65536 --profile
      zoo bench model gpt2-124m-rotary mixer.p=2 --mixers gated-power --lengths 524288 --optimizer
      zoo bench model --mixers gated-power --lengths 8192 --eager
    """
    from rich.console import Console

    from zoo.bench.model import ModelBenchmark, check_mixers
    from zoo.bench.model_run import run_cold_starts, run_model_benchmark
    from zoo.bench.op_run import check_files
    from zoo.bench.timing import ceilings_on, step_timer
    from zoo.errors import InputError
    from zoo.recipe import load_recipe
    from zoo.training.distributed import choose_device

    place = choose_device(device)
    modes = tuple(mode for mode, wanted in ((True, compiled), (False, eager)) if wanted)
    if not modes:
        raise InputError("compiled, eager: expected at least one of them")
    benchmark = ModelBenchmark(
        load_recipe(recipe, overrides), check_mixers([name.strip() for name in mixers.split(",")]), tuple(lengths),
        tokens, modes, optimizer, place, quadratic_limit, checkpoint_above,
    )  # fmt: skip
    check_files(csv_path, plot_path)
    console = Console()
    if cold_start:
        run_cold_starts(benchmark, console)
        return
    run_model_benchmark(
        benchmark, step_timer(repeats, place), ceilings_on(place),
        console=console, progress=Console(stderr=True), profile=profile, csv_path=csv_path, plot_path=plot_path,
    )  # fmt: skip


@click.command()
@click.argument("recipe", default="gpt2-124m-rotary")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--mixers", default="softmax,linear,gated-power", show_default=True, help="With commas.")
@click.option("--positions", default="1000,65536,1000000", show_default=True, callback=whole_numbers)
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1))
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: bfloat16 on a GPU]")
@click.option("--prefill", type=click.IntRange(1), help="Read random tokens, so many at a time, for real states.")
@click.option("--repeats", default=10, show_default=True, type=click.IntRange(1), help="At most so many timed runs.")
@click.option("--device", help="[default: a GPU if there is one]")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write this CSV file.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Also draw this PNG or SVG.")
def decode(
    recipe: str,
    overrides: tuple[str, ...],
    mixers: str,
    positions: list[int],
    batch_size: int,
    dtype: str | None,
    prefill: int | None,
    repeats: int,
    device: str | None,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
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
    from rich.console import Console

    from zoo.bench.decode import DecodeBenchmark
    from zoo.bench.decode_run import run_decode_benchmark
    from zoo.bench.model import check_mixers
    from zoo.bench.op_run import check_files
    from zoo.bench.timing import ceilings_on, step_timer
    from zoo.recipe import load_recipe
    from zoo.training.distributed import choose_device

    place = choose_device(device)
    default = torch.bfloat16 if place.type == "cuda" else torch.float32
    benchmark = DecodeBenchmark(
        load_recipe(recipe, overrides), check_mixers([name.strip() for name in mixers.split(",")]), tuple(positions),
        place, default if dtype is None else getattr(torch, dtype), batch_size, prefill, repeats + 1,
    )  # fmt: skip
    check_files(csv_path, plot_path)
    run_decode_benchmark(
        benchmark, step_timer(repeats, place), ceilings_on(place),
        console=Console(), progress=Console(stderr=True), csv_path=csv_path, plot_path=plot_path,
    )  # fmt: skip
