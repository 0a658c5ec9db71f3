"""From recipes to models, and from any recipe to one of the same structure that fits into a test."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.blocks.rotary import turning_width
from zoo.config import override_list
from zoo.errors import ConfigError
from zoo.kernels.devices import usable_device
from zoo.mixers import MixerConfig
from zoo.mixers.sliding_window import SlidingWindowConfig
from zoo.models.decoder import Decoder
from zoo.recipe import EvaluationConfig, Hybrid, Recipe, load_recipe
from zoo.recipe.data import DataConfig
from zoo.recipe.model import DecoderConfig

__all__ = ["NothingWritten", "build", "check_state", "configure", "shrink"]


def build(
    recipe: str | Recipe,
    *,
    mixer: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    overrides: Iterable[str] = (),
    **options: Any,
) -> Decoder:
    """Build a recipe's model with freshly drawn weights.

    `build("gpt2-124m", mixer="power", p=2)` is what `mixer=power mixer.p=2` is on the command line.

    Args:
        recipe: a recipe, its name, or the path of its file.
        mixer: replaces the recipe's mixer (of a hybrid: not the second one), or its mixers.
        device: where the parameters are made; "meta" allocates nothing, and takes a state of any size.
        dtype: of the parameters, float32 by default.
        overrides: `key=value` for everything else, for example `["model.layers=4"]`.
        options: options of the mixer, for example `p=2`.

    Raises:
        ConfigError: an unknown recipe, mixer, option or key, or a value that does not fit.
        InputError: `device` is none that there is, or a state is over the limit (see `zoo.state_limit`).
    """
    configured = configure(recipe, mixer=mixer, overrides=overrides, **options)
    place = usable_device(device) or torch.get_default_device()
    with place, NothingWritten() if place.type == "meta" else nullcontext():
        model = Decoder(configured.model, configured.layer_mixers)
    if place.type != "meta":
        check_state(model)
    return model if dtype is None else model.to(dtype=dtype)


def check_state(model: Decoder) -> None:
    """Raise `InputError` where the state of a sequence would be over the limit; nothing is allocated."""
    model.init_state(1, max_len=1, device="meta")


def configure(
    recipe: str | Recipe, *, mixer: str | None = None, overrides: Iterable[str] = (), **options: Any
) -> Recipe:
    """Return the recipe whose model `build` builds from the same arguments.

    Raises:
        ConfigError: see `build`.
    """
    replaced = [] if mixer is None else [f"mixer={mixer}"]
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    configured = base.override([*replaced, *override_list(overrides)])
    if not options:
        return configured
    if configured.mixers is not None:
        raise ConfigError(f"build: {next(iter(options))}: means nothing beside mixers, which say what every layer has")
    values = configured.model_dump(mode="json")
    return Recipe.from_mapping(values | {"mixer": values["mixer"] | options}, "build")


def shrink(recipe: Recipe) -> Recipe:
    """Return a recipe of the same structure at tiny widths, to train or test in seconds.

    Kept are the mixers and their options, hybrids, grouped heads, norms, biases, the kinds of feed-forward layer and of
    positions and how many there are, and tied embeddings. The data are bytes, also in place of a task, the sequences at
    most 64 tokens.
    """
    training = recipe.training
    steps = min(training.steps, 20)
    return recipe.replace(
        name=f"{recipe.name}-shrunk",
        model=_shrink_model(recipe.model),
        mixer=_shrink_mixer(recipe.mixer),
        hybrid=None if recipe.hybrid is None else Hybrid(mixer=_shrink_mixer(recipe.hybrid.mixer), every=2),
        mixers=recipe.mixers and tuple(map(_shrink_mixer, dict.fromkeys(recipe.mixers)))[:2],
        data=DataConfig(),
        task=None,
        evaluation=EvaluationConfig(),
        training=training.replace(
            context_length=min(training.context_length, 64),
            batch_size=min(training.batch_size, 4),
            accumulate=min(training.accumulate, 2),
            steps=steps,
            warmup_steps=min(training.warmup_steps, steps // 4),
            evaluation_tokens=min(training.evaluation_tokens, 512),
        ),
    )


def _shrink_model(model: DecoderConfig) -> DecoderConfig:
    grouped = model.key_value_heads is not None
    key_value_heads = min(2, model.key_value_heads or 1)
    group = min(4, model.heads // (model.key_value_heads or 1))
    heads = key_value_heads * group
    pairs = turning_width(8, model.rotary_share) // 2 or 1
    return model.replace(
        vocab_size=257,
        width=8 * heads,
        layers=2,
        heads=heads,
        key_value_heads=key_value_heads if grouped else None,
        head_width=None if model.head_width is None else 8,
        rotary_scaling=model.rotary_scaling and model.rotary_scaling.resize(pairs),
        feed_forward_width=None if model.feed_forward_width is None else 16 * heads,
    )


def _shrink_mixer(mixer: MixerConfig) -> MixerConfig:
    """Keep the kind and the options, but take the heads from the model and look back over part of a short sequence."""
    changes: dict[str, Any] = dict.fromkeys({"heads", "key_value_heads", "head_width"} & set(type(mixer).model_fields))
    if isinstance(mixer, SlidingWindowConfig):
        changes["window"] = min(mixer.window, 16)
    return mixer.replace(**changes)


class NothingWritten(TorchDispatchMode):
    """Leaves out writes, which mean nothing on the meta device and take most of the time of a build there."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        in_place = func._schema.name.endswith("_")
        return args[0] if in_place else func(*args, **(kwargs or {}))
