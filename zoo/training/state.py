"""Everything that training changes in memory, as named tensors, and back again.

torch's distributed state dicts name optimiser state by parameter instead of by number, and gather and scatter what is
sharded over processes, so that one process is the same code as many. Where processes read and write their parts by
themselves, nothing is gathered (`own_tensors`).
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from zoo.blocks.rows import order_rows
from zoo.errors import CheckpointError
from zoo.training.distributed import ALONE, Processes
from zoo.training.run.checkpoint import Checkpoint
from zoo.training.run.parts import Kinds

__all__ = [
    "check_own",
    "generator_tensors",
    "model_tensors",
    "optimizer_tensors",
    "own_tensors",
    "restore_generators",
    "restore_model",
    "restore_optimizer",
    "restore_own",
    "saved_tensors",
]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def saved_tensors(checkpoint: Checkpoint, name: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint of `model` has as `name`, rows in the order of this version.

    Raises:
        CheckpointError: there are none of that name, or they cannot be read.
    """
    return order_rows(model, checkpoint.tensors(name), checkpoint.rows)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, whole and on the CPU; shared ones under their first name."""
    return {name: tensor.contiguous() for name, tensor in _without_aliases(model, _WHOLE).items()}


def restore_model(
    model: nn.Module, tensors: Callable[[], Mapping[str, Tensor]], source: str, processes: Processes = ALONE
) -> None:
    """Give `model` the values that `model_tensors` returned.

    Args:
        tensors: returns them; called by the first process alone, which hands them out.
        source: what an error calls the tensors, for example their file.

    Raises:
        CheckpointError: they are those of another model, by name, shape or dtype.
    """
    found = _read(tensors, _kinds(_model_values(model)), source, processes)
    # Not strict, for shared parameters stand in the file once.
    set_model_state_dict(model, dict(found), options=_handing_out(processes, strict=False))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter and kind, for example `head.weight.exp_avg`, on the CPU.

    The options of the parameter groups are not in it: they follow from the config.
    """
    state = _optimizer_values(model, optimizer, _WHOLE).get("state", {})
    return {name: value.contiguous() for name, value in _by_kind(state).items()}


def restore_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Callable[[], Mapping[str, Tensor]],
    source: str,
    processes: Processes = ALONE,
) -> None:
    """Give a new `optimizer` of `model` the state that `optimizer_tensors` returned; arguments as of `restore_model`.

    Raises:
        CheckpointError: it is the state of another optimiser or model.
    """
    values = _optimizer_values(model, optimizer, StateDictOptions())
    found = _read(tensors, _kinds(_by_kind(values["state"])), source, processes)
    # A new mapping: the inner ones of `values` are the optimiser's own.
    state = {}
    if processes.is_main:
        state = {name: {kind: found[f"{name}.{kind}"] for kind in kinds} for name, kinds in values["state"].items()}
    set_optimizer_state_dict(model, optimizer, values | {"state": state}, options=_handing_out(processes, strict=True))


def own_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the state of both as it is, not copied: of what is spread over processes, this one's part."""
    values = _optimizer_values(model, optimizer, StateDictOptions())
    return {"model": _without_aliases(model, StateDictOptions()), "optimizer": _by_kind(values["state"])}


def check_own(own: Mapping[str, Mapping[str, Tensor]], found: Mapping[str, Kinds], source: str) -> None:
    """Check that what is found is, whole, what `own_tensors` returned.

    Raises:
        CheckpointError: it is of another model.
    """
    for group, tensors in own.items():
        _check_same(found[group], _kinds(tensors), source)


def restore_own(model: nn.Module, optimizer: torch.optim.Optimizer, own: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give a model and its new optimiser what `own_tensors` returned, with other values in it."""
    set_model_state_dict(model, dict(own["model"]), options=StateDictOptions(strict=False))
    values = _optimizer_values(model, optimizer, StateDictOptions())
    state = {
        name: {kind: own["optimizer"][f"{name}.{kind}"] for kind in kinds} for name, kinds in values["state"].items()
    }
    set_optimizer_state_dict(model, optimizer, values | {"state": state})


def generator_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the random number generators of the CPU and of `device`, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Continue the random numbers where `generator_tensors` was called. A state of no generator here is left out."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _model_values(model: nn.Module) -> dict[str, Tensor]:
    values = model.state_dict(keep_vars=True)
    own = dict(model.named_parameters())
    return {name: value for name, value in values.items() if name in own or not isinstance(value, nn.Parameter)}


def _read(
    tensors: Callable[[], Mapping[str, Tensor]],
    expected: Kinds,
    source: str,
    processes: Processes,
) -> dict[str, Tensor]:
    """Return the tensors where this is the first process, nothing elsewhere, once they are found to be as expected."""
    found: dict[str, Tensor] = {}

    def read_and_check() -> None:
        found.update(tensors())
        _check_same(_kinds(found), expected, source)

    processes.from_main(read_and_check)
    return found


def _handing_out(processes: Processes, *, strict: bool) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, strict=strict, broadcast_from_rank0=processes.mesh is not None)


def _check_same(found: Kinds, expected: Kinds, source: str) -> None:
    missing = next((name for name in expected if name not in found), None)
    if missing is not None:
        raise CheckpointError(f"{source}: lacks {missing}, so it is of another model")
    for name, kind in found.items():
        if name not in expected:
            raise CheckpointError(f"{source}: has {name}, which this model has not")
        if kind != expected[name]:
            was, must = (f"{dtype} {list(shape)}".removeprefix("torch.") for shape, dtype in (kind, expected[name]))
            raise CheckpointError(f"{source}: {name} is {was}, this model's is {must}")


def _kinds(tensors: Mapping[str, Tensor]) -> Kinds:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _without_aliases(model: nn.Module, options: StateDictOptions) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, shared ones under their first."""
    own = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own.keys()
    tensors = cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}


def _by_kind(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{kind}": value for name, kinds in state.items() for kind, value in kinds.items()}


def _optimizer_values(model: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions) -> dict[str, Any]:
    """Return `state`, by parameter and kind, and `param_groups`; where the CPU takes it, on the first process alone."""
    return cast("dict[str, Any]", get_optimizer_state_dict(model, optimizer, options=options))
