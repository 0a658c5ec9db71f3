"""How far a study is, as a table for the terminal."""

from rich.console import Console
from rich.markup import escape

from zoo.report.tables import plain_table
from zoo.study.progress import overall
from zoo.study.status import State, StudyStatus

__all__ = ["print_status"]

_STATES: tuple[State, ...] = ("done", "running", "waiting", "diverged", "stopped")


def print_status(name: str, status: StudyStatus, console: Console) -> None:
    """Print a row for each variant, a line for each run in training, and what is left over all."""
    table = plain_table("variant", *_STATES)
    for variant in status.step_flops:
        runs = [run for run in status.runs if run.variant == variant]
        counts = [sum(run.state == state for run in runs) for state in _STATES]
        table.add_row(escape(variant), *(str(each) if each else "" for each in counts))
    console.print(f"[bold]{escape(name)}[/bold]")
    console.print(table)
    for run in status.runs:
        if run.state == "running":
            console.print(
                f"{run.name}: step {run.step:,} of {run.steps:,}", markup=False, highlight=False, soft_wrap=True
            )
    console.print(f"{overall(status)}", markup=False, highlight=False, soft_wrap=True)
    if status.ended < len(status.runs) and status.seconds_left is not None:
        console.print("[dim]The time is that of training, compilation and evaluation not counted.[/dim]")
