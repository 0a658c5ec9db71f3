"""Rules for longer contexts against transformers' own functions, in models, and refused where they do not fit."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import zoo
from zoo.blocks.rotary import Rotation
from zoo.blocks.rotary_scaling import ScalingConfig, parse_scaling, scalings
from zoo.config import Config
from zoo.errors import ConfigError
from zoo.recipe import DecoderConfig

WIDTH, BASE, ORIGINAL = 64, 500_000.0, 8192
SHORT = [1 + pair / 100 for pair in range(WIDTH // 2)]
LONG = [1 + pair for pair in range(WIDTH // 2)]
_THEIRS = {"original_max_position_embeddings": ORIGINAL}
_OURS = {"original_positions": ORIGINAL}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int | None]] = {
    "linear": ({"kind": "linear", "factor": 2.5}, {"factor": 2.5}, None),
    "dynamic, short": ({"kind": "dynamic", "factor": 4.0} | _OURS, {"factor": 4.0}, None),
    "dynamic, long": (
        {"kind": "dynamic", "factor": 4.0, "context_length": 30_000} | _OURS,
        {"factor": 4.0},
        30_000,
    ),
    "yarn": ({"kind": "yarn", "factor": 4.0} | _OURS, {"factor": 4.0} | _THEIRS, None),
    "yarn, with all its options": (
        {"kind": "yarn", "factor": 40.0, "fast_turns": 16.0, "slow_turns": 2.0}
        | {"attention_factor": 0.7, "truncate": False}
        | _OURS,
        {"factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.7, "truncate": False} | _THEIRS,
        None,
    ),
    "llama3": (
        {"kind": "llama3", "factor": 8.0} | _OURS,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | _THEIRS,
        None,
    ),
    "longrope, short": (
        {"kind": "longrope", "short_factors": SHORT, "long_factors": LONG, "factor": 16.0} | _OURS,
        {"short_factor": SHORT, "long_factor": LONG, "factor": 16.0} | _THEIRS,
        ORIGINAL,
    ),
    "longrope, long": (
        {"kind": "longrope", "short_factors": SHORT, "long_factors": LONG, "factor": 16.0}
        | {"context_length": ORIGINAL + 1}
        | _OURS,
        {"short_factor": SHORT, "long_factor": LONG, "factor": 16.0} | _THEIRS,
        ORIGINAL + 1,
    ),
}  # fmt: skip


def rule(case: str) -> ScalingConfig:
    values = dict(CASES[case][0])
    return scalings[values["kind"]].from_mapping(values)


def theirs(case: str) -> tuple[torch.Tensor, float]:
    _, values, length = CASES[case]
    kind = case.split(",")[0]
    config = LlamaConfig(
        head_dim=WIDTH,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": kind, "rope_theta": BASE} | values,
    )
    return ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=length)


@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rule(case).frequencies(torch.arange(WIDTH // 2, dtype=torch.float64), BASE)
    assert ours.dtype == torch.float64
    plain, amplitude = theirs(case)
    assert rule(case).amplitude == amplitude
    torch.testing.assert_close(ours.float(), plain, rtol=2e-6, atol=0)  # which errs as float32 powers do
    # The same functions where what they call float32 is float64: nothing but the formula is left to compare.
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact, _ = theirs(case)
    monkeypatch.undo()
    assert exact.dtype == torch.float64
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_tables_have_these_frequencies_and_this_amplitude(case: str) -> None:
    scaling = rule(case)
    rotation = Rotation(WIDTH, BASE, scaling)
    frequencies = scaling.frequencies(torch.arange(WIDTH // 2, dtype=torch.float64), BASE)
    for make in (rotation.table, rotation.fused_table):
        table = make(torch.tensor([[100_003]]), torch.bfloat16)
        for values, expected in ((table.cos, torch.cos), (table.sin, torch.sin)):
            angles = frequencies * 100_003
            torch.testing.assert_close(
                values[0, 0, 0, WIDTH // 2 :],
                (scaling.amplitude * expected(angles)).float(),
                rtol=0,
                atol=1e-6 * scaling.amplitude,
            )


@pytest.mark.parametrize("case", CASES)
def test_rules_are_read_as_they_are_written(case: str) -> None:
    assert parse_scaling(rule(case).model_dump_json()) == rule(case)
    assert parse_scaling("") is None


class _Model(Config):
    model: DecoderConfig


STYLE = {"vocab_size": 16, "width": 16, "layers": 2, "heads": 2, "positions": "rotary", "initializer_range": 0.3}


def small(case: str) -> dict[str, Any]:
    scaling = dict(CASES[case][0])
    for name in ("short_factors", "long_factors"):
        if name in scaling:
            scaling[name] = scaling[name][4:8]
    if "original_positions" in scaling:
        scaling["original_positions"] = 8  # so that the few tokens of a test are beyond
    if "context_length" in scaling:
        scaling["context_length"] = 32
    return scaling


@pytest.mark.parametrize("case", ["linear", "dynamic, long", "yarn", "llama3", "longrope, long"])
@torch.no_grad()
def test_models_decode_what_they_compute_in_parallel(case: str) -> None:
    overrides = [f"model={STYLE | {'rotary_scaling': small(case)}}", "mixer.query_key_norm=false"]
    recipe = zoo.load_recipe("tiny", overrides)
    assert type(recipe).from_yaml(recipe.to_yaml()) == recipe
    model = zoo.build(recipe)
    plain = zoo.build(recipe.override(["model.rotary_scaling=null"]))
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(16, (2, 12))
    logits, state = model(tokens).logits, model.init_state(2, max_len=12)
    steps = torch.stack([model.step(tokens[:, t], state) for t in range(12)], 1)
    torch.testing.assert_close(steps, logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    assert zoo.shrink(recipe).model.rotary_scaling.kind == case.split(",")[0]


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
@torch.no_grad()
def test_models_compile_whole(kind: str) -> None:
    case = {"longrope": "longrope, long"}.get(kind, kind)
    model = zoo.build(zoo.load_recipe("tiny", [f"model={STYLE | {'rotary_scaling': small(case)}}"]))
    tokens = torch.randint(16, (2, 8))
    compiled = torch.compile(model.forward, fullgraph=True)
    torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    step, states = torch.compile(model.step, fullgraph=True), [model.init_state(2, max_len=8) for _ in range(2)]
    torch.testing.assert_close(step(tokens[:, 0], states[0]), model.step(tokens[:, 0], states[1]), rtol=1e-4, atol=1e-5)


def test_a_factor_of_one_changes_nothing() -> None:
    pairs = torch.arange(WIDTH // 2, dtype=torch.float64)
    for kind in ("linear", "yarn", "llama3", "dynamic"):
        positions = {} if kind == "linear" else _OURS
        scaling = scalings[kind].from_mapping({"factor": 1.0} | positions)
        torch.testing.assert_close(scaling.frequencies(pairs, BASE), BASE ** (-2 * pairs / WIDTH), rtol=1e-12, atol=0)
        assert math.isclose(scaling.amplitude, 1)


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        ({"kind": "yran", "factor": 2.0}, r"model\.rotary_scaling\.kind: must be one of .*'yarn'.*, got 'yran'"),
        ({"factor": 2.0}, r"model\.rotary_scaling\.kind: missing"),
        ({"kind": "linear"}, r"model\.rotary_scaling\.factor: missing"),
        ({"kind": "linear", "factor": 0.5}, r"model\.rotary_scaling\.factor: must be greater than or equal to 1"),
        ({"kind": "linear", "factor": 2.0, "beta": 1}, r"model\.rotary_scaling\.beta: unknown key"),
    ],
)
def test_what_is_no_rule_is_refused(scaling: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        _Model.from_mapping({"model": STYLE | {"rotary_scaling": scaling}})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("scaling", "line"),
    [
        (
            {"kind": "llama3", "factor": 2.0, "low_frequency_factor": 4.0} | _OURS,
            r"high_frequency_factor: must be more",
        ),
        (
            {"kind": "longrope", "short_factors": [1.0], "long_factors": [1.0] * 4} | _OURS,
            r"rotary_scaling\.short_factors: must be 4 numbers above 0, one for each pair of channels, got 1",
        ),
    ],
)
def test_rules_that_do_not_fit_the_heads_are_refused(scaling: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        zoo.build(zoo.load_recipe("tiny", [f"model={STYLE | {'rotary_scaling': scaling}}"]))
    with pytest.raises(ConfigError, match="needs at least 4 channels"):
        Rotation(2, BASE, rule("dynamic, short"))
