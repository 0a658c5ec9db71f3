"""What `zoo train` compiles, compiled once: a step, an evaluation and the measures of a recipe; and decoding."""

import os
from typing import cast

import torch

from zoo.compiling.report import naming_compile_errors
from zoo.errors import InputError
from zoo.generation import compile_decoder
from zoo.models import Decoder
from zoo.recipe import Recipe
from zoo.training.distributed import join_processes
from zoo.training.engine import Engine
from zoo.training.examples import examples_of
from zoo.training.memory import advice, naming_memory_errors
from zoo.training.optimizer import deterministic_on_cpu
from zoo.training.train import load_material
from zoo.training.workshop import Workshop

__all__ = ["run_recipe"]

_PROMPTS = (64, 65)  # tokens: a graph for the first length, and one for all others
_TOKENS = 4


def run_recipe(recipe: Recipe, device: torch.device, *, decode_rows: int = 0) -> None:
    """Make each kind of pass of a recipe's run, as `zoo.training.train` makes them, without a run's folder.

    Args:
        recipe: its own data are read, of which the first batch is trained on.
        device: where.
        decode_rows: also read prompts and decode, compiled, in so many rows; 0: do not.

    Raises:
        InputError: there is more than one process, or `decode_rows` is less than 0.
        ZooError: as of `zoo.training.train`: the data cannot be read, the model does not compile, memory does not
            suffice.
    """
    if decode_rows < 0:
        raise InputError(f"decode_rows: expected 0 or more, was {decode_rows}")
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise InputError(f"WORLD_SIZE: expected one process, without torchrun, was {count}")
    training = recipe.training
    batch = training.batch_size * training.context_length
    training = training.replace(evaluation_tokens=min(batch, training.evaluation_tokens))
    with join_processes(device, training.parallel) as processes, torch.random.fork_rng(devices=processes.gpus):
        material = load_material(recipe, None)
        torch.manual_seed(training.seed)
        objective = Workshop().objective(recipe, processes)
        examples = examples_of(material, training, recipe.evaluation, processes)
        with naming_memory_errors(advice(training)), naming_compile_errors():
            engine = Engine(objective, training, examples, processes)
            with deterministic_on_cpu(device):
                engine.evaluate()
                engine.step(1)
                engine.measure()
            if decode_rows:
                _decode(cast(Decoder, objective.model).eval(), decode_rows)


def _decode(model: Decoder, rows: int) -> None:
    decoder = compile_decoder(model)
    device = model.token_embedding.weight.device
    for length in _PROMPTS:
        tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
        for _ in decoder.decoding(tokens, max_new_tokens=_TOKENS):
            pass
