"""Made-up summaries with curves of a plausible shape, and a small study whose training is made up too."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.builder import shrink
from zoo.recipe import load_recipe
from zoo.recipe.study import Study, load_study
from zoo.study.page import render_page
from zoo.study.results import Curve, Machine, RunSummary, VariantSummary
from zoo.study.summary import CorpusSummary, StudySummary

from .fakes import FakeTraining

MACHINE = Machine(zoo="0.1.0", torch="2.13.0", python="3.11.2", device="A Processor @ 2.1 GHz", threads=2)
CONTEXTS = (256, 1024, 4096, 16384, 65536)


def fake_curve(
    final: float, points: int, seconds_per_step: float, flops_per_token: float, wobble: float = 0.0
) -> Curve:
    """Return a loss that falls from 8 bits to `final`, at `points` moments evenly over 300 steps of 4,096 tokens."""
    steps = [round(300 * point / (points - 1)) for point in range(points)]
    return Curve(
        tokens=tuple(step * 4096 for step in steps),
        flops=tuple(step * 4096.0 * flops_per_token for step in steps),
        seconds=tuple(step * seconds_per_step for step in steps),
        bits=tuple(
            final + (8 - final) * math.exp(-step / 45) * (1 - step / 300) + wobble * math.sin(step) for step in steps
        ),
    )


def fake_run(final: float, *, speed: float = 1.0, rate: float = 4e-3, seed: int = 0) -> RunSummary:
    """Return a finished run; its validation text is as hard in both halves."""
    flops = 7.4e6 / speed
    return RunSummary(
        learning_rate=rate,
        seed=seed,
        final_bits=final,
        choosing_bits=final,
        reported_bits=final,
        best_bits=final,
        seconds=300 * 0.2 / speed,
        tokens_per_second=4096 / 0.2 * speed,
        compile_seconds=14.2,
        graph_breaks=0,
        recompiles=0,
        validation=fake_curve(final, 13, 0.2 / speed, flops),
        training=fake_curve(final - 0.02, 61, 0.2 / speed, flops, wobble=0.06),
        machine=MACHINE,
    )


def fake_variant(
    name: str,
    final: float = 2.1,
    *,
    parameters: int = 1_203_456,
    speed: float = 1.0,
    state: int | None = 135_168,
    runs: tuple[RunSummary, ...] = (),
) -> VariantSummary:
    """Return a trained variant; `state` is its constant state in bytes, None for one that grows with the context."""
    flops = 7.4e6 / speed
    return VariantSummary(
        name=name,
        mixer=name,
        overrides=(f"mixer={name}",),
        parameters=parameters,
        feed_forward_width=512,
        forward_flops_per_token=flops / 3,
        training_flops_per_token=flops,
        state_bytes=tuple(state or context * 2048 for context in CONTEXTS),
        tokens=300 * 4096,
        runs=runs or (fake_run(final, speed=speed),),
    )


def fake_summary(*variants: VariantSummary, planned: tuple[str, ...] = (), **changes: object) -> StudySummary:
    """Return a study of `variants`, by default the four mixers."""
    chosen = variants or (
        fake_variant("softmax", 2.214, state=None),
        fake_variant("linear", 2.391, parameters=1_204_102, speed=1.31, state=69_632),
        fake_variant("power", 2.268, parameters=1_203_987, speed=0.83),
        fake_variant("gated-power", 2.197, parameters=1_205_511, speed=0.71),
    )
    values = {
        "name": "four-mixers",
        "description": "Softmax, linear, power and gated-power attention in the same small model.",
        "recipe": "tiny",
        "study_yaml": "name: four-mixers\nrecipe: tiny\n",
        "command": "zoo ablate four-mixers",
        "date": "2026-01-02T03:04:05+00:00",
        "unit": "bits per byte",
        "steps": 300,
        "context_length": 256,
        "batch_tokens": 4096,
        "seeds": tuple(sorted({run.seed for variant in chosen for run in variant.runs})),
        "corpus": CorpusSummary(
            source="stdlib",
            tokenizer="bytes",
            documents=1_234,
            train_bytes=11_727_222,
            validation_bytes=618_456,
            train_tokens=11_728_394,
            validation_tokens=618_518,
            hash="0123456789abcdef" * 4,
        ),
        "bigram_bits": 3.583,
        "state_contexts": CONTEXTS,
        "planned": planned or tuple(each.name for each in chosen),
        "variants": chosen,
    }
    return StudySummary(**values | changes)


@pytest.fixture
def make_variant() -> Callable[..., VariantSummary]:
    return fake_variant


@pytest.fixture
def make_run() -> Callable[..., RunSummary]:
    return fake_run


@pytest.fixture
def make_summary() -> Callable[..., StudySummary]:
    return fake_summary


@pytest.fixture(scope="session")
def summary() -> StudySummary:
    return fake_summary()


@pytest.fixture(scope="session")
def page(summary: StudySummary) -> str:
    return render_page(summary)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Return the path of a recipe that trains in a moment, on a text of its own."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of {number**3}\n" for number in range(2000)))
    small = shrink(load_recipe("tiny"))
    training = small.training.replace(steps=3, evaluate_every=2, checkpoint_every=2, log_every=1, warmup_steps=1)
    small = small.replace(data=small.data.replace(source=str(text)), training=training)
    path = tmp_path / "small.yaml"
    path.write_text(small.to_yaml())
    return str(path)


@pytest.fixture
def study(recipe: str) -> Study:
    return load_study(recipe)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr("zoo.study.work.train", fake)
    return fake


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the time of drawing."""
    for module in ("page", "report"):
        monkeypatch.setattr(f"zoo.study.{module}.render", lambda *arguments: b"<svg/>")
