"""Reading a folder of transformers as a zoo model, and writing one."""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from zoo.blocks.heads import HeadConfig
from zoo.errors import InputError, nearest
from zoo.hf.weights.converted import read_conversion, with_conversion, without_scales
from zoo.hf.weights.gpt2 import GPT2_KINDS
from zoo.hf.weights.kinds import Kind, Source
from zoo.hf.weights.llama import LLAMA_KINDS
from zoo.hf.weights.mamba2 import MAMBA2_KINDS
from zoo.hf.weights.rwkv7 import RWKV7_KINDS, rwkv7_settings
from zoo.hf.weights.settings import read_settings
from zoo.mixers import mixers
from zoo.models import Decoder
from zoo.reading import read_regular
from zoo.report.files import replace_file, writing

__all__ = ["KINDS", "export_weights", "import_weights"]

KINDS: dict[str, Kind] = LLAMA_KINDS | GPT2_KINDS | MAMBA2_KINDS | RWKV7_KINDS
"""Model types that are read and written."""

_NEW = (".mixer.gate.weight", ".mixer.gate.bias", ".mixer.output.norm.weight")
"""Ends of names of parameters that softmax attention does not have, and other mixers do."""


def import_weights(
    path: Path | str, mixer: str = "softmax", *, context_length: int | None = None, **options: Any
) -> Decoder:
    """Read a model of transformers as a zoo model of the same logits, or with another mixer in the place of attention.

    Files are safetensors and JSON: data, of which nothing is executed and no key is passed over.

    Args:
        path: a folder with config.json and weights, as `save_pretrained` writes it, or a file of RWKV-7's weights, as
            its authors publish it: .safetensors, or .pth, which is read as tensors alone.
        mixer: "softmax": the attention that the model has, with its window if it has one, or what it has in the place
            of attention, `zoo.hf.convert`'s power attention too. Others with projections to heads take over all
            weights; what they have beside, gates and output norms, is freshly drawn.
        context_length: the longest sequence that the model is for, of which rotary positions of the types `dynamic` and
            `longrope` depend; by default what it was first trained for. The others reach any length as they are.
        options: of the mixer, for example `p=2`.

    Raises:
        InputError: a file is missing or damaged; a model type, a setting or a weight is not known here, or missing.
        ConfigError: the mixer has no such option.
    """
    folder = Path(path)
    tensors = _read_file(folder) if folder.is_file() else {}
    settings = rwkv7_settings(tensors, str(folder)) if tensors else read_settings(folder)
    conversion = read_conversion(settings)
    kind = _kind(settings.values.get("model_type"), settings.source)
    tensors = _named_as(kind, tensors or _read_tensors(folder))
    source = kind.read(settings, tensors.keys())
    settings.finish()
    if conversion is not None:
        tensors = without_scales(tensors, conversion)
        source = with_conversion(source, conversion, tensors)
    scaling = source.config.rotary_scaling
    if context_length is not None and scaling is not None:
        reaching = source.config.replace(rotary_scaling=scaling.reaching(context_length))
        source = source._replace(config=reaching)
    decoder = Decoder(source.config, [_mixer(attention, mixer, options) for attention in source.attention])
    weights = _zoo_weights(source, decoder, tensors, str(folder))
    dtype = _widest(tensors, str(folder))
    decoder = decoder.to(dtype)
    decoder.load_state_dict({name: x.to(dtype) for name, x in weights.items()}, strict=False)
    return decoder


def export_weights(decoder: Decoder, path: Path | str, model_type: str, **settings: Any) -> None:
    """Write a zoo model as one of transformers' own, bit by bit what `import_weights` reads.

    A model with another mixer than softmax attention is none of these: `zoo.hf.to_hf` takes any.

    Args:
        decoder: the model.
        path: a folder, made if need be.
        model_type: one of `KINDS`, for example "llama", "qwen3" or "gpt2".
        settings: further keys of config.json, such as `eos_token_id`.

    Raises:
        InputError: the model is none of that type, or the files cannot be written; nothing is, then.
    """
    kind = _kind(model_type, "model_type")
    weights = {name: x.detach().cpu() for name, x in decoder.state_dict().items()}
    target = kind.write(decoder, weights)
    values = {"model_type": model_type, **target.settings, **settings}
    values["dtype"] = str(decoder.token_embedding.weight.dtype).removeprefix("torch.")
    values["architectures"] = [kind.architecture]
    tensors: dict[str, Tensor] = {}
    for piece in target.pieces:
        tensors |= zip(piece.sources, piece.write([weights.pop(name) for name in piece.names]), strict=True)
    if weights:
        raise InputError(f"model: {sorted(weights)[0]}: a {model_type} has no such weight")
    content = safetensors.torch.save({name: x.contiguous() for name, x in tensors.items()}, {"format": "pt"})
    folder = Path(path)
    with writing(folder, InputError):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "model.safetensors", content, InputError)
    replace_file(folder / "config.json", (json.dumps(values, indent=2) + "\n").encode(), InputError)


def _kind(model_type: object, source: str) -> Kind:
    if model_type not in KINDS:
        hint = nearest(str(model_type), KINDS)
        raise InputError(f"{source}: model_type: expected one of {', '.join(KINDS)}, was {model_type!r}{hint}")
    return KINDS[str(model_type)]


def _read_file(path: Path) -> dict[str, Tensor]:
    """Read a file of weights alone; what a .pth holds beside tensors is refused and never run."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(read_regular(path))
        found = torch.load(io.BytesIO(read_regular(path)), map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise InputError(f"{path}: cannot be read as tensors alone: {reason}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(x, Tensor) for x in found.values()):
        raise InputError(f"{path}: expected tensors by name, was {type(found).__name__}")
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    try:
        if index.is_file():
            names = sorted(set(json.loads(read_regular(index))["weight_map"].values()))
        elif not (folder / names[0]).is_file() and (folder / "pytorch_model.bin").exists():
            raise InputError(
                f"{folder}: expected model.safetensors, found pytorch_model.bin, which would be executed to be read; "
                "load it with transformers and save it as safetensors"
            )
        tensors: dict[str, Tensor] = {}
        for name in names:
            if Path(name).name != name:
                raise InputError(f"{index}: weight_map: expected names of files in the folder, was {name!r}")
            tensors |= safetensors.torch.load(read_regular(folder / name))
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return tensors


def _widest(tensors: Mapping[str, Tensor], folder: str) -> torch.dtype:
    """Return the dtype that holds every tensor without a loss."""
    widest = torch.bfloat16 if all(x.dtype == torch.bfloat16 for x in tensors.values()) else torch.float16
    for name, x in tensors.items():
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"{folder}: {name}: expected floating weights that are not quantised, was {x.dtype}")
        widest = torch.promote_types(widest, x.dtype)
    return widest


def _named_as(kind: Kind, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by their full names, without those that hold nothing learned."""
    bare = kind.prefix and not any(name.startswith(kind.prefix) for name in tensors)
    prefix = kind.prefix if bare else ""
    named = {name if name == "lm_head.weight" else prefix + name: x for name, x in tensors.items()}
    return {name: x for name, x in named.items() if not name.endswith(kind.meaningless)} if kind.meaningless else named


def _mixer(attention: Mapping[str, Any], name: str, options: dict[str, Any]) -> Any:
    attending = [each for each, spec in mixers.items() if issubclass(spec.config, HeadConfig)]
    if name not in attending:
        raise InputError(f"mixer: expected one with projections to heads, {', '.join(attending)}, was {name!r}")
    if attention["name"] not in attending and name != "softmax":
        raise InputError(
            f"mixer: expected none, as this model has {attention['name']} in the place of attention, was {name!r}"
        )
    if name == "softmax":
        return mixers[attention["name"]].config.from_mapping({**attention, **options}, "options")
    known = mixers[name].config.model_fields.keys() - {"name"}
    taken = {key: value for key, value in attention.items() if key in known}
    return mixers[name].config.from_mapping({"name": name} | taken | options, "options")


def _zoo_weights(source: Source, decoder: Decoder, tensors: Mapping[str, Tensor], folder: str) -> dict[str, Tensor]:
    """Return the decoder's weights from the file's, every name of both sides matched."""
    expected = {name: x.shape for name, x in decoder.state_dict().items()}
    found, unused = {}, set(tensors)
    for piece in source.pieces:
        missing = [name for name in piece.sources if name not in tensors]
        if missing:
            raise InputError(f"{folder}: {missing[0]}: missing")
        unused.difference_update(piece.sources)
        read = piece.read([tensors[name] for name in piece.sources], [expected[name] for name in piece.names])
        for name, value in zip(piece.names, read, strict=True):
            if value.shape != expected[name]:
                raise InputError(
                    f"{folder}: {', '.join(piece.sources)}: expected {list(expected[name])} in all as config.json "
                    f"says, was {list(value.shape)}"
                )
            found[name] = value
    if "lm_head.weight" in unused and source.config.tie_embeddings:
        if not torch.equal(tensors["lm_head.weight"], found["token_embedding.weight"]):
            raise InputError(f"{folder}: lm_head.weight: expected the embedding's matrix, with tie_word_embeddings")
        unused.remove("lm_head.weight")
    if unused:
        raise InputError(f"{folder}: {sorted(unused)[0]}: unknown weight, which the model would be without")
    drawn = [name for name in expected.keys() - found.keys() if not name.endswith(_NEW)]
    assert not drawn, drawn
    return found
