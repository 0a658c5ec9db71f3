"""`zoo bench model --profile`: kernel launches a layer, and where the time of a training step goes."""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from zoo.bench.kernels import KINDS, Kernel, launches, profile_kernels, seconds, share_of_work
from zoo.bench.training_step import TrainingStep
from zoo.report.numbers import milliseconds

__all__ = ["ModelProfile", "print_profile", "profile_step"]

_KERNELS = 16  # that are listed
_NAME = 44  # characters of a kernel's name


@dataclass(frozen=True)
class ModelProfile:
    """The kernels of one training step, and of its forward pass."""

    forward: list[Kernel]
    step: list[Kernel]
    launches_per_layer: float | None  # forward; None where the model has too few layers to tell


def profile_step(step: TrainingStep, *, compiled: bool) -> ModelProfile:
    """Profile a training step.

    What a layer launches is what the model launches beyond one of fewer layers, over the layers that it has beyond it.

    Args:
        step: of a recipe's whole model.
        compiled: whether it is.
    """
    recipe, device = step.recipe, step.device
    forward, whole = profile_kernels(step.forward, device), profile_kernels(step, device)
    few = 1 if recipe.hybrid is None else recipe.hybrid.every
    more = (recipe.model.layers - 1) // few * few
    if more < few:
        return ModelProfile(forward, whole, None)
    short = recipe.override([f"model.layers={recipe.model.layers - more}"])
    fewer = profile_kernels(TrainingStep(short, device, compiled=compiled, optimize=False).forward, device)
    return ModelProfile(forward, whole, (launches(forward) - launches(fewer)) / more)


def print_profile(profile: ModelProfile, title: str, console: Console) -> None:
    """Print launches, shares of time, and the kernels that take most of it."""
    console.print(f"\n{title}", style="bold", highlight=False)
    table = _table("", "forward\nlaunches", "\nms", "\nshare", "step\nlaunches", "\nms", "\nshare")
    for kind in (*KINDS, None):
        cells = [cell for kernels in (profile.forward, profile.step) for cell in _cells(kernels, kind)]
        table.add_row(kind or "all", *cells)
    console.print(table)
    share = f"matmuls and op: {share_of_work(profile.forward):.1%} of the forward pass, "
    console.print(f"{share}{share_of_work(profile.step):.1%} of the step", highlight=False)
    if profile.launches_per_layer is not None:
        console.print(f"kernel launches a layer, forward: {profile.launches_per_layer:.1f}", highlight=False)
    kernels = _table("kernel of the step", "kind", "launches", "ms")
    for kernel in profile.step[:_KERNELS]:
        name = kernel.name if len(kernel.name) <= _NAME else f"{kernel.name[: _NAME - 1]}…"
        kernels.add_row(name, kernel.kind, f"{kernel.launches:.0f}", milliseconds(kernel.seconds))
    console.print(kernels, markup=False)


def _cells(kernels: list[Kernel], kind: str | None) -> list[str]:
    time = seconds(kernels, kind)
    share = time / max(seconds(kernels), 1e-12)
    return [f"{launches(kernels, kind):,.0f}", milliseconds(time), f"{share:.1%}"]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", vertical="bottom", no_wrap=True)
    return table
