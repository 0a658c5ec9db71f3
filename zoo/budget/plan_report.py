"""A plan as text for a terminal: what it assumes, a table, and a line for each model that `zoo show` takes."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.budget.plan import HEAD_WIDTHS, MULTIPLE, SHAPES, TOLERANCE, Choice, Plan
from zoo.budget.times import Times
from zoo.report.numbers import count, counted, milliseconds, size
from zoo.report.tables import plain_table

__all__ = ["assumptions", "print_plan"]

SLOW = 0.2
"""Share of the rate of large matrix products under which mixing is called slow, where it takes as long as all else."""


def assumptions(plan: Plan, batch_size: int, place: str) -> list[str]:
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
        f"Mixing: milliseconds of all layers' mixing along time for one sequence, forward and backward, from times "
        f"measured on {place}; - where nothing like it was timed.",
    ]


def print_plan(plan: Plan, batch_size: int, times: Times, place: str, console: Console) -> None:
    """Print a plan; the lines at its end are never wrapped.

    Args:
        plan: what to print.
        batch_size: sequences that are decoded.
        times: what mixing took.
        place: where.
        console: where to print.
    """
    console.print(
        f"[bold]{plan.target:,} parameters, context {plan.context:,}[/bold]  nearest to 1:1 first", highlight=False
    )
    if plan.choices:
        console.print(_table(plan, batch_size, times))
        console.print()
        slow = dict.fromkeys(kind for choice in plan.choices if (kind := _slow(choice, times)))
        if slow:
            console.print(
                "Slow as kernels are now, and where most of the time goes; of the rate of large matrix products, "
                f"mixing reaches with {', '.join(slow)}.\n", highlight=False,
            )  # fmt: skip
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
    for sentence in assumptions(plan, batch_size, place):
        console.print(f"- {escape(sentence)}", highlight=False)


def _slow(choice: Choice, times: Times) -> str | None:
    """Name the mixer, and its share, where it is slow; what merely moves memory, as p = 1 does, takes little time."""
    mixing, budget = times.mixing(choice), choice.budget
    if mixing is None or mixing.share >= SLOW:
        return None
    weights = 3 * budget.weight_flops * budget.context / (times.peak / 2)
    power = "" if choice.p is None else f" p = {choice.p}"
    kind = f"{choice.mixer}{power}, heads of {choice.head_width}: {mixing.share:.0%}"
    return kind if mixing.seconds > weights else None


def _table(plan: Plan, batch_size: int, times: Times) -> Table:
    table = plain_table(
        "mixer", "p", "head", "layers\nx width", "param-\neters", "ratio", "state", "train\nFLOPs", "memory",
        "mixing\nms",
    )  # fmt: skip
    for choice in plan.choices:
        mixing = times.mixing(choice)
        table.add_row(
            choice.mixer,
            "-" if choice.p is None else str(choice.p),
            str(choice.head_width),
            f"{choice.layers} x {choice.width}",
            count(choice.parameters),
            f"{choice.budget.ratio:#.3g}".rstrip("."),
            size(choice.budget.state_bytes),
            count(choice.budget.training_flops),
            size(choice.decode_bytes(batch_size)),
            "-" if mixing is None else milliseconds(mixing.seconds),
        )
    return table
