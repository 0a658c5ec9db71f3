"""Layouts as text for a terminal: a table, the command of the best, and what the numbers assume."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.budget.layout import Layout, Layouts, Links, Room
from zoo.report.numbers import count, counted, milliseconds, size
from zoo.report.tables import plain_table

__all__ = ["print_layouts"]


def print_layouts(layouts: Layouts, command: Sequence[str], links: Links, room: Room, console: Console) -> None:
    """Print layouts; the lines with commands are never wrapped.

    Args:
        layouts: what to print.
        command: the recipe and its overrides, as `zoo train` takes them.
        links: that they were made for.
        room: that a GPU has.
        console: where to print.
    """
    training = layouts.recipe.training
    console.print(
        f"[bold]{escape(' '.join(command))}[/bold]\n{counted(layouts.gpus, 'GPU')}, context "
        f"{training.context_length:,}, checkpointing {training.checkpointing}: a model, not a measurement",
        highlight=False,
    )
    console.print(_table(layouts, room))
    console.print()
    fits = [layout for layout in layouts.found if layout.memory <= room.memory]
    if fits:
        console.print(_command(fits[0], layouts, command, links), soft_wrap=True, highlight=False, markup=False)
    else:
        console.print(
            f"No layout fits into {size(room.memory)}; training.checkpointing=selective or =full takes less memory.",
            highlight=False,
        )
    console.print()
    for context, reason in layouts.refused.items():
        console.print(f"Not {context} to a sequence: {reason}", highlight=False, markup=False)
    for line in _assumptions(layouts, links):
        console.print(f"- {line}", highlight=False, markup=False)


def _table(layouts: Layouts, room: Room) -> Table:
    table = plain_table(
        "mesh", "tokens\na GPU", "memory", "states\nreceived", "weights\nreceived", "step\nms",
        "effi-\nciency", "tokens/s\nof all",
    )  # fmt: skip
    for layout in layouts.found:
        table.add_row(
            f"{layout.data_replicate} x {layout.data_shard} x {layout.context}",
            f"{layout.tokens:,}",
            size(layout.memory) + (" " if layout.memory <= room.memory else "!"),
            size(layout.states_received),
            size(layout.weights_received),
            milliseconds(layout.seconds),
            f"{layout.efficiency:.1%}",
            count(layout.tokens_per_second),
        )
    return table


def _command(layout: Layout, layouts: Layouts, command: Sequence[str], links: Links) -> str:
    nodes = -(-layouts.gpus // links.node)
    several = f"--nnodes {nodes} " if nodes > 1 else ""
    settings = {
        "training.context_length": layouts.recipe.training.context_length,
        "training.accumulate": 1,
        "training.batch_size": layout.sequences,
        "training.parallel.data_replicate": layout.data_replicate,
        "training.parallel.context": layout.context,
    }
    stated = [part for part in command if part.partition("=")[0] not in settings]
    return " ".join(
        [
            f"torchrun {several}--nproc-per-node {min(layouts.gpus, links.node)} -m zoo train",
            *stated,
            *(f"{key}={value}" for key, value in settings.items() if value != 1 or not key.startswith("training.par")),
        ]
    )


def _assumptions(layouts: Layouts, links: Links) -> list[str]:
    """Return what the numbers rest on, a sentence each."""
    return [
        "Mesh: training.parallel.data_replicate x data_shard x context. The command is the first layout's that fits; "
        "batch_size is the number of sequences, data_replicate x data_shard.",
        f"A token takes {1e6 * layouts.token_seconds:.3g} us on one GPU, forward and backward; a step is one pass over "
        "one sequence for each group of GPUs that have one together. Efficiency is beside one GPU that had the memory "
        "and sent nothing.",
        f"Links: a GPU receives {links.inside:g} GB/s within a node of {links.node} and {links.between:g} GB/s between "
        f"nodes; an exchange takes {links.latency:g} us and more. States are waited for, weights and gradients are "
        "sent while layers are computed.",
        "Memory: weights, gradients and AdamW in float32, layers that are gathered, and activations as they are "
        "without a compiler, which takes less. ! is more than there is.",
        "Bytes received, FLOPs and activations are counted on a pass of the model's code over one share, on the meta "
        "device, in bfloat16.",
    ]
