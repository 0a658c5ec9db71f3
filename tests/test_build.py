"""Building: the sizes that recipes promise, the same model from Python and from overrides, and shrinking."""

import pytest
import torch

import zoo
from zoo.blocks.heads import HeadConfig
from zoo.builder import build, configure, shrink
from zoo.errors import ConfigError, InputError
from zoo.kernels.delta import init_delta_state
from zoo.kernels.power import init_power_state
from zoo.kernels.rwkv7 import init_rwkv7_state
from zoo.mixers import mixers
from zoo.recipe import Recipe, available_recipes, load_recipe
from zoo.states import move_state


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-124m-rotary", 124_439_808 - 1024 * 768),
        ("llama-360m", 361_821_120),
        ("tiny", 357_120),
        ("mamba2-130m", 128_989_632),
        ("rwkv7-124m", 124_250_112),
        ("gla-340m", 341_707_776),
        ("hgrn2-340m", 341_147_648),
        ("delta-340m", 341_594_112),
        ("gated-delta-400m", 516_837_830),
        ("kda-340m", 354_226_368),
        ("delta-power-124m", 123_884_064),
    ],
)
def test_recipes_have_exactly_the_parameters_they_promise(name: str, parameters: int) -> None:
    model = build(name, device="meta")
    assert model.num_parameters() == parameters
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("mixer", [name for name, spec in mixers.items() if issubclass(spec.config, HeadConfig)])
def test_every_mixer_of_heads_stands_in_gpt2_within_a_hundredth(mixer: str) -> None:
    assert build("gpt2-124m", mixer=mixer, device="meta").num_parameters() == pytest.approx(124_439_808, rel=0.002)


def test_the_hybrid_holds_both_mixers() -> None:
    model = build("hybrid-124m", device="meta")
    assert [config.name for config in model.mixer_configs] == (["gated-power"] * 3 + ["softmax"]) * 3


def test_every_layer_has_the_mixer_that_is_listed_for_it() -> None:
    recipe = load_recipe("tiny", ["mixers=[sliding-window, {name: power, p: 3}, mamba2]"])
    model = build(recipe, device="meta")
    assert model.mixer_configs == recipe.mixers
    assert [mixer.name for mixer in shrink(recipe).layer_mixers] == ["sliding-window", "power"]
    with pytest.raises(ConfigError, match="build: p: means nothing beside mixers"):
        build(recipe, device="meta", p=2)
    assert build(recipe, mixer="power", p=1, device="meta").mixer_configs == (mixers["power"].config(p=1),) * 3


def test_python_and_overrides_describe_the_same_model() -> None:
    assert configure("gpt2-124m", mixer="power", p=3) == load_recipe("gpt2-124m", ["mixer=power", "mixer.p=3"])
    assert configure("tiny", overrides=["mixer=power"], p=3) == configure(
        "tiny", mixer="power", overrides=["mixer.p=3"]
    )
    model = zoo.build(
        "tiny", mixer="gated-power", p=1, retention=(0.5, 0.9), overrides=["model.layers=1"], device="meta"
    )
    assert model.mixer_configs == (mixers["gated-power"].config(p=1, retention=(0.5, 0.9)),)
    recipe = load_recipe("tiny")
    assert build(recipe, device="meta").config == recipe.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "tny"}, "unknown recipe 'tny'"),
        ({"mixer": "powr"}, "got 'powr' .did you mean 'power'"),
        ({"mixer": "power", "pp": 2}, "build: mixer.pp: unknown key .did you mean 'p'"),
        ({"mixer": "power", "p": 9}, "build: mixer.p: must be less than or equal to 4, got 9"),
        ({"mixer": "softmax", "p": 2}, "build: mixer.p: unknown key"),
        ({"overrides": ["model.heads=5"]}, "heads must divide width 96"),
        ({"mixer": "power", "key_value_heads": 2}, "key_value_heads: must divide the 3 query heads, got 2"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**({"recipe": "tiny", "device": "meta"} | arguments))


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(InputError, match=r"^device: must be one that there is here, such as 'cpu'.*, got 'gpu'$"):
        build("tiny", device="gpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "xpu", "hpu", "vulkan", "privateuseone", ""])
def test_a_device_that_is_not_here_is_named_wherever_it_is_given(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except Exception:  # whatever the backend answers with
        model = build("tiny", mixer="power", device="meta")
        state = model.init_state(1)
        for call in (
            lambda: build("tiny", device=device),
            lambda: model.init_state(1, device=device),
            lambda: model.blocks[0].mixer.init_state(1, device=device),
            lambda: move_state(state, device=device),
            lambda: init_power_state(1, 1, 8, 8, 2, device=device),
            lambda: init_rwkv7_state(1, 1, 8, device),
            lambda: init_delta_state(1, 1, 8, 8, device=device),
        ):
            with pytest.raises(InputError, match=rf"^device: must be one .*, got '{device}'$"):
                call()


def test_device_and_dtype_are_taken() -> None:
    recipe = shrink(load_recipe("tiny"))
    assert build(recipe, dtype=torch.bfloat16).token_embedding.weight.dtype == torch.bfloat16
    with torch.device("meta"):
        assert build(recipe).token_embedding.weight.is_meta
        assert build(recipe, device="cpu").token_embedding.weight.device.type == "cpu"
    model = build(recipe, device="meta").to_empty(device="cpu")
    model.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_weights_follow_from_the_seed() -> None:
    recipe = shrink(load_recipe("hybrid-124m"))
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(torch.cat([parameter.detach().flatten() for parameter in build(recipe).parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def structure(recipe: Recipe) -> dict:
    """The part of a recipe that shrinking keeps."""
    model, training = recipe.model, recipe.training
    heads = {"heads", "key_value_heads", "head_width", "window"}
    return {
        "model": model.model_dump(
            include={
                "feed_forward",
                "norm",
                "norm_eps",
                "bias",
                "positions",
                "max_positions",
                "rotary_base",
                "tie_embeddings",
            }
        ),
        "grouping": model.heads // (model.key_value_heads or model.heads),
        "mixer": recipe.mixer.model_dump(exclude=heads),
        "hybrid": recipe.hybrid and recipe.hybrid.mixer.model_dump(exclude=heads),
        "mixers": {mixer.name for mixer in recipe.layer_mixers},
        "training": training.model_dump(include={"learning_rate", "schedule", "weight_decay", "compile", "seed"}),
    }


@pytest.mark.parametrize("mixer", [None, *mixers])
@pytest.mark.parametrize("name", available_recipes())
def test_shrinking_keeps_the_structure_at_tiny_sizes(name: str, mixer: str | None) -> None:
    recipe = configure(name, mixer=mixer)
    small = shrink(recipe)
    assert structure(small) == structure(recipe)
    assert Recipe.from_yaml(small.to_yaml()) == small
    model = build(small)
    assert model.num_parameters() < 100_000
    tokens = torch.randint(small.model.vocab_size, (2, 20))
    logits, state = model(tokens, return_state=True)
    assert logits.shape == (2, 20, 257)
    assert state is not None


def test_shrinking_survives_odd_recipes() -> None:
    recipe = load_recipe(
        "tiny",
        [
            *("model.heads=64", "model.key_value_heads=1", "model.head_width=40", "model.layers=1"),
            *("mixer=sliding-window", "mixer.heads=8", "mixer.window=5", "training.steps=1", "training.warmup_steps=1"),
        ],
    )
    small = shrink(recipe)
    assert (small.model.heads, small.model.key_value_heads, small.model.head_width) == (4, 1, 8)
    assert small.mixer == mixers["sliding-window"].config(window=5)
    assert build(small).num_parameters() < 50_000
    assert shrink(small).model == small.model
