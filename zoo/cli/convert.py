"""`zoo convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli.options import Folder, Numbers, token_count
from zoo.report.terminal import say

__all__ = ["convert"]


def _number_or_learned(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | str | None:
    if value is None or value == "learned":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"expected a number or 'learned', was {value!r}") from None


def _tokens(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else token_count(context, parameter, value)


def _layers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Numbers | None:
    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected indices with commas, such as 0,2,4, was {value!r}") from None


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=Folder())
@click.option("--mixer", default="gated-power", show_default=True, help="What comes between the heads.")
@click.option("-p", "power", type=int, help="The power of scores, for power mixers.  [default: 2]")
@click.option("--offset", callback=_number_or_learned, help="Added to scores: a number or learned.")
@click.option("--scale", callback=_number_or_learned, help="Factor on scores: a number or learned.")
@click.option("--window", type=int, help="Tokens that a token sees, for sliding-window.")
@click.option("--layers", callback=_layers, help="Indices of layers to convert.  [default: all]")
@click.option("--text", help="What to train on: a file, a folder or a glob, as data.source of recipes.")
@click.option("--transfer-tokens", callback=_tokens, help="Train what is new to follow the attention that was there.")
@click.option("--distill-tokens", callback=_tokens, help="Then train to predict what the model before predicts.")
@click.option(
    "--train", type=click.Choice(["attention", "lora", "all"]), default="attention", show_default=True,
    help="What is trained in distillation.",
)  # fmt: skip
@click.option("--transfer-rate", type=click.FloatRange(0, min_open=True), default=1e-2, show_default=True)
@click.option("--distill-rate", type=click.FloatRange(0, min_open=True), default=1e-4, show_default=True)
@click.option("--context", type=click.IntRange(2), default=512, show_default=True, help="Tokens in a sequence.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Sequences in a step.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Passes in a step.")
@click.option(
    "--evaluation-tokens", default="64K", show_default=True, callback=token_count,
    help="Held-back tokens that a perplexity is measured on: before and after a stage.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", help="For example cpu or cuda:1.  [default: a GPU if there is one]")
def convert(path: Path, out: Path, **options: Any) -> None:
    """Put another mixer between the heads of the model in PATH, train it, and write it into OUT.

    PATH is a folder that transformers wrote (safetensors) or a .gguf file; OUT a new folder that
    AutoModelForCausalLM.from_pretrained loads where `import zoo.hf` was said. Without tokens to train on, the model is
    converted and no more, which is of little use by itself. At Ctrl-C a checkpoint is saved, and the same command goes
    on from there. OUT/stages.json says perplexities before and after, beside the model's in PATH.

    \b
    Example:
      zoo convert SmolLM2-135M converted -p 2 --text 'books/*.txt' --transfer-tokens 1M --distill-tokens 50M
    """
    wanted = {name: options[f"{name}_tokens"] for name in ("transfer", "distill")}
    if options["text"] is None and any(wanted.values()):
        raise click.UsageError("say what to train on: --text")
    if options["text"] is not None and not any(wanted.values()):
        raise click.UsageError("say how long to train: --transfer-tokens or --distill-tokens")
    try:
        from zoo.hf.on_disk import Plan, convert_on_disk
        from zoo.hf.stages import Stage
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    from zoo.training import make_progress

    def stage(name: str) -> Stage | None:
        if wanted[name] is None:
            return None
        made = Stage(
            context_length=options["context"], batch_size=options["batch"], accumulate=options["accumulate"],
            learning_rate=options[f"{name}_rate"], seed=options["seed"],
            evaluation_tokens=options["evaluation_tokens"],
        )  # fmt: skip
        return made.replace(steps=-(-wanted[name] // made.tokens_per_step))

    conversion = {name: options[name] for name in ("mixer", "offset", "scale", "window", "layers")}
    plan = Plan(
        options=conversion | {"p": options["power"]}, text=options["text"], transfer=stage("transfer"),
        distill=stage("distill"), train=options["train"], seed=options["seed"],
    )  # fmt: skip
    say(str(convert_on_disk(path, out, plan, device=options["device"], progress=make_progress)))
    say(f"{out}: written")
