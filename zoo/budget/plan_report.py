"""A plan as text for a terminal: what it assumes, a table, and a line for each model that `zoo show` takes."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.budget.plan import HEAD_WIDTHS, MULTIPLE, SHAPES, TOLERANCE, Plan
from zoo.report.numbers import count, counted, size
from zoo.report.tables import plain_table

__all__ = ["assumptions", "print_plan"]


def assumptions(plan: Plan, batch_size: int) -> list[str]:
    """Return what the numbers of a plan rest on, a sentence each."""
    model = plan.recipe.model
    head_widths = ", ".join(map(str, HEAD_WIDTHS))
    vocabulary = "tied with the head" if model.tie_embeddings else "with a head of its own"
    feed_forward = "no feed-forward layers" if model.feed_forward == "none" else model.feed_forward
    positions = "no" if model.positions == "none" else model.positions
    return [
        f"Base recipe {plan.base}: {feed_forward}, {model.norm}, {positions} positions, vocabulary of "
        f"{model.vocab_size:,} {vocabulary}; one mixer in every layer, its options but p at their defaults.",
        f"Parameters within {TOLERANCE:.0%}; widths are multiples of {MULTIPLE}, {SHAPES[0]} to {SHAPES[1]} times the "
        f"layers; head widths {head_widths}, one of them where they make no difference.",
        "Ratio: FLOPs of linear layers and head to FLOPs of mixing along time, for one token, the mean over a sequence "
        "of the context's length. Training FLOPs, for one token too, are 3 times the forward pass.",
        "State: all that init_state makes for one sequence, caches in bfloat16 and running sums in float32.",
        f"Memory: parameters in bfloat16 and the states of {counted(batch_size, 'sequence')}, no activations.",
    ]


def print_plan(plan: Plan, batch_size: int, console: Console) -> None:
    """Print a plan; the lines at its end are never wrapped."""
    console.print(
        f"[bold]{plan.target:,} parameters, context {plan.context:,}[/bold]  nearest to 1:1 first", highlight=False
    )
    if plan.choices:
        console.print(_table(plan, batch_size))
        console.print()
        for choice in plan.choices:
            console.print(escape(plan.line(choice)), highlight=False, soft_wrap=True)
        console.print()
    else:
        console.print("none within the limit of the state")
    if plan.smallest_left_out is not None:
        smallest = plan.smallest_left_out
        console.print(
            f"Left out: {counted(plan.left_out, 'model')} whose state is over {size(plan.state_limit)} a sequence, or "
            f"over what the op makes for a head; the smallest, {smallest.budget.state_bytes:,} bytes, is that of",
            highlight=False,
        )
        console.print(escape(plan.line(smallest)), highlight=False, soft_wrap=True)
    for sentence in assumptions(plan, batch_size):
        console.print(f"- {escape(sentence)}", highlight=False)


def _table(plan: Plan, batch_size: int) -> Table:
    table = plain_table(
        "mixer", "p", "head", "layers\nx width", "parameters", "ratio", "state", "train\nFLOPs", "memory"
    )
    for choice in plan.choices:
        table.add_row(
            choice.mixer,
            "-" if choice.p is None else str(choice.p),
            str(choice.head_width),
            f"{choice.layers} x {choice.width}",
            f"{choice.parameters:,}",
            f"{choice.budget.ratio:#.3g}".rstrip("."),
            size(choice.budget.state_bytes),
            count(choice.budget.training_flops),
            size(choice.decode_bytes(batch_size)),
        )
    return table
