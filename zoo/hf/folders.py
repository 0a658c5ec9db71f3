"""Models that lie in folders, with their tokenizers: those of transformers, and runs of the zoo."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from zoo.data import tokenizer_of
from zoo.errors import InputError
from zoo.hf.tokenizer import to_hf_tokenizer
from zoo.hf.zoo_model import ZooForCausalLM, to_hf
from zoo.recipe import Recipe
from zoo.training import load_run
from zoo.training.distributed import choose_device

__all__ = ["is_run", "load_any", "load_hf_run", "load_tokenizer", "load_transformers"]


def is_run(path: Path) -> bool:
    """Whether a folder is one that `zoo train` wrote."""
    return (path / "recipe.yaml").is_file()


def load_any(path: Path, *, device: torch.device | str | None = None) -> tuple[PreTrainedModel, Any, int | None]:
    """Return the model of a run or of a folder of transformers, its tokenizer, and the context it was trained at.

    Args:
        path: a run, or what `load_transformers` loads. The context of the latter is in its config, if anywhere.
        device: by default a GPU if there is one, else the CPU.

    Raises:
        CheckpointError: the run has no checkpoint yet, or it is damaged.
        InputError: there is neither, it cannot be loaded, it knows no text, or there is no tokenizer.
    """
    place = choose_device(device)
    if not is_run(path):
        return load_transformers(path, "auto").to(place), load_tokenizer(path, required=True), None
    recipe, model = load_hf_run(path)
    if recipe.task is not None:
        raise InputError(f"path: expected a run on text, was one on task {recipe.task.kind}")
    tokenizer = to_hf_tokenizer(tokenizer_of(recipe.data))
    return model.to(place), tokenizer, recipe.training.context_length


def load_hf_run(path: Path) -> tuple[Recipe, ZooForCausalLM]:
    """Return the recipe of a run and its newest model as one of transformers, on the CPU.

    Raises:
        CheckpointError: there is no run or no checkpoint yet, or it is damaged.
    """
    recipe, decoder = load_run(path)
    separator = tokenizer_of(recipe.data).separator
    return recipe, to_hf(decoder, bos_token_id=separator, eos_token_id=separator, pad_token_id=separator)


def _place(path: Path) -> tuple[str, dict[str, Any]]:
    """Return where transformers looks for a model, and how it is told the file."""
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if (path / "config.json").is_file():
        return str(path), {}
    raise InputError(f"path: expected a folder with config.json and safetensors, or a .gguf file, was {str(path)!r}")


def load_transformers(path: Path, dtype: Any) -> PreTrainedModel:
    """Return the model in a folder, for inference; nothing comes from the network, and no code of the folder is run.

    Args:
        path: a folder with config.json and safetensors, or a .gguf file, whose weights are unpacked.
        dtype: of the weights; "auto": as they are.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    folder, options = _place(path)
    if options:
        options = options | _unpacked()
        dtype = torch.float32
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InputError(f"path: {path} cannot be loaded: {' '.join(str(error).split())}") from error
    return model.eval()


def _unpacked() -> dict[str, Any]:
    """Options that make whole weights of a GGUF file's."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def load_tokenizer(path: Path, *, required: bool) -> Any:
    """Return the tokenizer in a folder or a .gguf file; None where there is none, and none is required.

    Raises:
        InputError: one is required, and there is none that is described by a tokenizer.json.
    """
    folder, options = _place(path)
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if not required:
            return None
        raise InputError(f"path: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if required and not isinstance(found, PreTrainedTokenizerFast):
        raise InputError(f"path: expected a tokenizer with a tokenizer.json, was {type(found).__name__}")
    return found
