"""`zoo show`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from zoo.report.tables import GuardedConsole

if TYPE_CHECKING:
    from zoo.accounting import Accounting
    from zoo.blocks.rotary_scaling import ScalingConfig
    from zoo.mixers import MixerConfig
    from zoo.recipe import Recipe

__all__ = ["show"]


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the whole resolved recipe as YAML and nothing else.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of cached keys and values; running sums are float32 always.  [default: float32]",
)
@click.option(
    "--compile", "compiles", is_flag=True, help="Compile the model instead, and show graphs, breaks and recompiles."
)
@click.option("--optimizer", "optimizes", is_flag=True, help="Show which parameters decay instead, and their rates.")
def show(
    recipe: str, overrides: tuple[str, ...], as_yaml: bool, dtype: str | None, compiles: bool, optimizes: bool
) -> None:
    """Show what RECIPE is and what its model costs: parameters, state bytes and FLOPs by context.

    RECIPE is a name from `zoo list` or the path of a .yaml file. Nothing is allocated, so that sizes can
    be looked at which no machine could train.

    \b
    Examples:
      zoo show gpt2-124m
      zoo show llama-360m mixer=gated-power mixer.p=2 --dtype bfloat16
      zoo show tiny --yaml > mine.yaml
      zoo show hybrid-124m --compile
      zoo show rwkv7-124m --optimizer
    """
    import torch

    from zoo.accounting import CONTEXTS, account
    from zoo.errors import InputError
    from zoo.recipe import load_recipe

    chosen = {"--yaml": as_yaml, "--compile": compiles, "--optimizer": optimizes, "--dtype": dtype is not None}
    together = [option for option, given in chosen.items() if given]
    if len(together) > 1:
        raise InputError(
            f"{together[1]}: expected without {together[0]}, which prints something else; give one of them"
        )
    loaded = load_recipe(recipe, overrides)
    if as_yaml:
        click.echo(loaded.to_yaml(), nl=False)
        return
    if compiles:
        _show_compilation(loaded)
        return
    if optimizes:
        _show_optimizer(loaded)
        return
    contexts = set(CONTEXTS)
    if loaded.model.positions == "learned":
        contexts.add(loaded.model.max_positions)
    costs = account(loaded, sorted(contexts), getattr(torch, dtype or "float32"))
    console = GuardedConsole()
    console.print(f"[bold]{escape(loaded.name)}[/bold]  {escape(loaded.description)}")
    console.print(_facts(loaded, costs))
    console.print(_parameter_table(costs))
    console.print(_context_table(costs))
    console.print("[dim]State of one sequence while decoding. FLOPs a token, the mean over a sequence.[/dim]")
    if costs.refused:
        console.print(escape(f"No such model is built or trained as it is: {costs.refused}"), highlight=False)


def _facts(recipe: Recipe, costs: Accounting) -> Table:
    from zoo.report.numbers import counted

    model = recipe.model
    heads = " or ".join(_head_text(*counts) for counts in costs.heads)  # the mixers' own: some make them by themselves
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    feed_forward = "no feed-forward layers" if model.feed_forward == "none" else model.feed_forward
    parts = [counted(model.layers, "layer"), f"width {model.width}", heads, model.norm, feed_forward]
    table.add_row("model", ", ".join(filter(None, parts)))
    table.add_row("mixers", escape(_mixer_text(recipe)))
    table.add_row("positions", _position_text(recipe))
    table.add_row("vocabulary", f"{model.vocab_size:,} tokens{', tied embeddings' if model.tie_embeddings else ''}")
    if recipe.task is None:
        table.add_row("data", escape(f"{recipe.data.source}, tokenizer {recipe.data.tokenizer}"))
    else:
        table.add_row("task", f"{recipe.task.kind}, lengths {', '.join(f'{n:,}' for n in recipe.task.train_lengths)}")
    training = recipe.training
    tokens = training.steps * training.tokens_per_step
    length = f"{counted(training.steps, 'step')}, {counted(tokens, 'token')}"
    table.add_row("training", f"{length}, context {training.context_length:,}")
    return table


def _head_text(heads: int, key_value_heads: int) -> str:
    from zoo.report.numbers import counted

    text = counted(heads, "head")
    return text if heads == key_value_heads else f"{text} in {counted(key_value_heads, 'group')}"


def _mixer_text(recipe: Recipe) -> str:
    from zoo.report.numbers import counted

    counts = Counter(map(_with_options, recipe.layer_mixers))
    if len(counts) == 1:
        return f"{next(iter(counts))} in every layer"
    return ", ".join(f"{mixer} in {counted(layers, 'layer')}" for mixer, layers in counts.items())


def _with_options(mixer: MixerConfig) -> str:
    """Return a mixer's name and what is not at its default, for example `power (p=3)`."""
    options = mixer.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    return f"{mixer.name} ({', '.join(f'{key}={value}' for key, value in options.items())})" if options else mixer.name


def _position_text(recipe: Recipe) -> str:
    model = recipe.model
    return {
        "learned": f"learned, {model.max_positions:,}: no sequence may be longer",
        "rotary": f"rotary, base {model.rotary_base:,.0f}{_scaling_text(model.rotary_scaling)}: any context",
        "none": "none: any context",
    }[model.positions]


def _scaling_text(scaling: ScalingConfig | None) -> str:
    return "" if scaling is None else f", {scaling.kind} scaling"


def _parameter_table(costs: Accounting) -> Table:
    parameters = costs.parameters
    table = Table("parameters", "", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for name, number in (
        ("token embedding", parameters.embedding),
        ("learned positions", parameters.positions),
        ("mixers", parameters.mixers),
        ("feed-forward", parameters.feed_forward),
        ("norms", parameters.norms),
        ("head", parameters.head),
    ):
        if number:
            table.add_row(name, f"{number:,}")
    table.add_section()
    table.add_row("total", f"{parameters.total:,}", style="bold")
    return table


def _context_table(costs: Accounting) -> Table:
    from zoo.report.numbers import count, size

    table = Table("context", box=SIMPLE_HEAD)
    for heading in ("state", "bytes", "forward FLOPs", "training FLOPs"):
        table.add_column(heading, justify="right")
    for context, state in costs.state_bytes.items():
        forward, training = costs.forward_flops_per_token[context], costs.training_flops_per_token[context]
        table.add_row(f"{context:,}", size(state), f"{state:,}", count(forward), count(training))
    return table


def _show_compilation(recipe: Recipe) -> None:
    """Print what the compiler makes of the model, on a GPU if there is one."""
    import torch

    from zoo.compiling.check import check_compilation

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = GuardedConsole()
    table = Table(escape(recipe.name), box=SIMPLE_HEAD)
    for heading in ("lengths", "graphs", "breaks", "recompiles", "seconds"):
        table.add_column(heading, justify="right")
    reasons = []
    for way in check_compilation(recipe, device):
        report = way.report
        lengths = f"{way.lengths[0]:,}" if len(way.lengths) == 1 else f"{way.lengths[0]:,} to {way.lengths[-1]:,}"
        table.add_row(
            way.name, lengths, f"{report.graphs}", f"{report.graph_breaks}", f"{report.recompiles}",
            f"{report.seconds:.1f}",
        )  # fmt: skip
        reasons += [f"{way.name}: {reason}" for reason in way.reasons]
    console.print(table)
    for reason in reasons:
        console.print(escape(reason))
    where = "shrunk, on the CPU" if device.type == "cpu" else f"on {torch.cuda.get_device_name()}"
    console.print(
        f"[dim]The model {where}. Expected are one graph for the first length and one for all others; recompiles are "
        "graphs beyond that.[/dim]"
    )


def _show_optimizer(recipe: Recipe) -> None:
    """Print the groups in which the optimiser treats parameters alike, with their names; `*` stands for any layer."""
    from zoo.blocks.treatment import Treatment, treatments
    from zoo.builder import build
    from zoo.report.numbers import counted

    model, training = build(recipe, device="meta"), recipe.training
    groups: dict[Treatment, dict[str, list[int]]] = {}
    for name, treatment in treatments(model).items():
        kind = ".".join("*" if part.isdecimal() else part for part in name.split(".", 2)[:2])
        kind = ".".join([kind, *name.split(".", 2)[2:]])
        groups.setdefault(treatment, {}).setdefault(kind, []).append(model.get_parameter(name).numel())
    console = GuardedConsole()
    for treatment in sorted(groups, reverse=True):
        kinds = groups[treatment]
        decay = f"decay {training.weight_decay:g}" if treatment.decays else "no decay"
        total = counted(sum(map(sum, kinds.values())), "parameter")
        console.print(f"[bold]{decay}, learning rate {treatment.share * training.learning_rate:g}[/bold]  {total}")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column()
        table.add_column(justify="right")
        for kind, sizes in kinds.items():
            table.add_row(escape(kind), f"{sum(sizes):,}")
        console.print(table)
