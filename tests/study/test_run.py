"""The study's own logic around a faked training; the last test trains for real."""

from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.image import imread

from zoo.data import load_corpus
from zoo.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DivergenceError,
    InputError,
    TrainingError,
    UntrainableError,
)
from zoo.recipe import Recipe
from zoo.recipe.study import DEFAULT_MIXERS
from zoo.study import Study, StudySummary, load_study
from zoo.study import run_study as run_tasks
from zoo.study.machine import describe_machine, read_machine
from zoo.study.resolve import resolve_study
from zoo.study.variants import Variant
from zoo.training import TrainingResult, run_status
from zoo.training.run import RunFolder

from .fakes import FakeTraining

PLOTS = ("loss-by-flops", "loss-by-seconds", "loss-by-tokens", "state-by-context")
REPORT = sorted(
    [
        *("index.html", "recipe.yaml", "runs.csv", "setting.json", "study.yaml"),
        *("summary.csv", "summary.json", "summary.md", "summary.tex"),
        *(f"{plot}.{ending}" for plot in PLOTS for ending in ("png", "pdf", "csv")),
    ]
)


def run_study(study: Study, folder: Path, **options) -> StudySummary:
    """Run a study of one task."""
    (summary,) = run_tasks(study, folder, **options)
    return summary


def resolve_variants(study: Study) -> tuple[Variant, ...]:
    (part,) = resolve_study(study)
    return part.variants


WITHOUT = ("device", "progress", "workshop")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_study_leaves_its_report(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "study"
    summary = run_study(study, folder, progress=False)
    assert training.trained == list(study.variants)
    assert len(training.corpora) == 1
    assert files_in(folder) == REPORT
    assert StudySummary.from_json((folder / "summary.json").read_text()) == summary
    assert Study.from_yaml((folder / "study.yaml").read_text()) == study
    assert summary.corpus.train_bytes + summary.corpus.validation_bytes == (tmp_path / "text.txt").stat().st_size
    assert [variant.name for variant in summary.variants] == list(study.variants)
    assert summary.unfinished == ()
    for name in ("loss-by-tokens", "state-by-context"):
        assert imread(BytesIO((folder / f"{name}.png").read_bytes()), format="png").std() > 0.05


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_of_a_variant(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    summary = run_study(study, tmp_path / "s", progress=False)
    softmax, _, power, _ = summary.variants
    assert (softmax.name, softmax.mixer, softmax.overrides) == ("softmax", "softmax", ("mixer=softmax",))
    assert (softmax.final_bits, softmax.best_bits, softmax.compile_seconds) == (5.0, 4.9, 1.5)
    assert softmax.validation.bits == (8.0, 7.0, 6.0, 5.0)
    assert softmax.training.tokens == (256, 512, 768)
    assert softmax.training.bits[0] == pytest.approx(4 / 0.693147, rel=0.01)
    assert softmax.training_flops_per_token == 3 * softmax.forward_flops_per_token
    assert softmax.state_bytes[-1] > 200 * softmax.state_bytes[0]
    assert len(set(power.state_bytes)) == 1
    assert softmax.runs[0].machine == describe_machine()
    assert softmax.feed_forward_width == resolve_variants(study)[0].recipe.model.feed_forward_width


@pytest.mark.usefixtures("undrawn")
def test_what_is_finished_is_not_trained_again(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    first = run_study(study, tmp_path / "s", progress=False)
    again = run_study(study, tmp_path / "s", progress=False)
    assert len(training.trained) == 4
    assert again.replace(date=first.date) == first


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("failure", [TrainingError("step 7: the loss is nan"), KeyboardInterrupt()])
def test_after_a_failure_the_rest_is_done_by_the_same_call(
    failure: BaseException, study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    training.fails["power"] = failure
    message = r"^variant 'power': step 7: the loss is nan$" if isinstance(failure, TrainingError) else None
    with pytest.raises(type(failure), match=message):
        run_study(study, tmp_path, progress=False)
    assert training.trained == ["softmax", "linear", "power"]
    partial = StudySummary.from_json((tmp_path / "summary.json").read_text())
    assert partial.unfinished == ("power", "gated-power")
    assert "Not finished yet: power, gated-power" in (tmp_path / "index.html").read_text()
    assert run_status(tmp_path / "power") == "unfinished"

    training.fails.clear()
    assert run_study(study, tmp_path, progress=False).unfinished == ()
    assert training.trained[3:] == ["power", "gated-power"]
    assert "Not finished" not in (tmp_path / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_cannot_be_trained_here_keeps_nobody_else(
    study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    training.fails |= {name: UntrainableError("out of memory") for name in ("linear", "power")}
    message = r"^variant 'linear': out of memory; so it is with 1 more$"
    with pytest.raises(UntrainableError, match=message):
        run_study(study, tmp_path, progress=False)
    assert training.trained == list(study.variants)
    assert StudySummary.from_json((tmp_path / "summary.json").read_text()).unfinished == ("linear", "power")

    training.fails.clear()
    assert run_study(study, tmp_path, progress=False).unfinished == ()


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_diverges_is_a_result(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    training.fails["power"] = DivergenceError("step 7: the loss is nan")
    summary = run_study(study, tmp_path, progress=False)
    assert training.trained == list(study.variants)
    assert [variant.name for variant in summary.variants] == ["softmax", "linear", "gated-power"]
    assert (summary.unfinished, summary.diverged) == ((), ("power",))
    assert str(summary.divergences[0]) == "power at learning rate 0.004, seed 0"
    assert "power at learning rate 0.004, seed 0: step 7: the loss is nan." in (tmp_path / "index.html").read_text()
    assert StudySummary.from_json((tmp_path / "summary.json").read_text()) == summary
    run_study(study, tmp_path, progress=False)
    assert len(training.trained) == 4  # it would end so again

    (tmp_path / "power" / "diverged.yaml").unlink()
    training.fails.clear()
    assert len(run_study(study, tmp_path, progress=False).variants) == 4


@pytest.mark.usefixtures("undrawn")
def test_a_rate_at_which_a_seed_diverged_is_not_chosen(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    training.fails["rate-0.004-seed-1"] = DivergenceError("step 7: the loss is nan")
    several = study.replace(seeds=2, learning_rates=(1e-3, 4e-3), variants={"a": (), "b": ("mixer=power",)})
    summary = run_study(several, tmp_path, progress=False)
    assert [variant.learning_rates for variant in summary.variants] == [(1e-3,), (1e-3,)]
    assert [(each.variant, each.seed) for each in summary.divergences] == [("a", 1), ("b", 1)]


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_the_report_that_was_there(
    study: Study, training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    run_study(study, folder, progress=False)
    before = {name: (folder / name).read_bytes() for name in REPORT}

    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(TrainingError, match=r"study.yaml: cannot be written: No space left on device$"):
        run_study(study.replace(description="another"), folder, progress=False)
    assert {name: (folder / name).read_bytes() for name in REPORT} == before
    assert files_in(folder) == REPORT


@pytest.mark.usefixtures("undrawn")
def test_what_another_process_trains_is_left_to_it(
    study: Study, training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ExitStack()
    held.enter_context(RunFolder(tmp_path / "linear").locked())
    waits: list[float] = []

    def other_process(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            held.close()  # as if it had been killed

    monkeypatch.setattr("zoo.study.work.time.sleep", other_process)
    summary = run_study(study, tmp_path, progress=False)
    assert training.trained == ["softmax", "power", "gated-power", "linear"]
    assert [variant.name for variant in summary.variants] == list(study.variants)
    assert len(waits) >= 3


@pytest.mark.usefixtures("undrawn")
def test_what_another_process_finished_meanwhile_is_not_trained_again(
    study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    variants = {variant.name: variant for variant in resolve_variants(study)}
    corpus = load_corpus(variants["power"].recipe.data)

    class Other(FakeTraining):
        def __call__(self, recipe: Recipe, folder: Path, **options) -> TrainingResult:
            if folder.name == "softmax":  # while it trains, another process finishes power
                power = variants["power"].runs[0].recipe
                super().__call__(power, folder.parent / "power", corpus=corpus, **dict.fromkeys(WITHOUT))
            return super().__call__(recipe, folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        other = Other()
        patch.setattr("zoo.study.work.train", other)
        run_study(study, tmp_path, progress=False)
    assert other.trained == ["power", "softmax", "linear", "gated-power"]


@pytest.mark.usefixtures("undrawn")
def test_runs_of_another_recipe_or_corpus_are_refused_before_training(
    study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    run_study(study, folder, progress=False)
    with pytest.raises(CheckpointError, match=r"softmax: holds a run with training.steps=3, not 4"):
        run_study(study.overridden(["training.steps=4"]), folder, progress=False)
    with (tmp_path / "text.txt").open("a") as text:
        text.write("another line\n")
    with pytest.raises(CheckpointError, match=r"softmax: was trained on another corpus \(sha256 "):
        run_study(study, folder, progress=False)
    assert len(training.trained) == 4


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"b": ("mixer=pwoer",)}, r"^variant 'b': overrides: mixer.name: .*did you mean 'power'"),
        ({"b": ("mixer.p=2",)}, r"^variant 'b': overrides: mixer.p: unknown key"),
        (
            {"b": ("training.steps=4",)},
            r"^variant 'b': training.steps is 4, and 3 in the first variant; data, seed and",
        ),
        ({"b": ("training.seed=4",)}, r"^variant 'b': training.seed is 4, and 0 in the first"),
        ({"b": ("data.source=stdlib",)}, r"^variant 'b': data.source is 'stdlib', and "),
        ({"b": ("model.width=512", "model.heads=4")}, r"^variant 'b': parameters: "),
        ({"b": ("mixer=power", "mixer.p=9")}, r"^variant 'b': overrides: mixer.p: "),
    ],
)
def test_a_bad_variant_is_named_before_anything_is_trained(
    variants: dict[str, tuple[str, ...]], message: str, study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    with pytest.raises(ConfigError, match=message) as caught:
        run_study(study.replace(variants={"a": ("mixer=softmax",)} | variants), folder, progress=False)
    assert "\n" not in str(caught.value)
    assert training.trained == []
    assert not folder.exists()


def test_variants_may_differ_in_what_is_not_budget(study: Study) -> None:
    variants = {"a": (), "b": ("training.learning_rate=1e-2",), "c": ("hybrid.mixer=power", "hybrid.every=2")}
    resolved = resolve_variants(study.replace(variants=variants))
    assert [variant.mixer for variant in resolved] == ["softmax", "softmax", "softmax, power in 1 of 2 layers"]


@pytest.mark.usefixtures("undrawn")
def test_a_variant_runs_at_every_rate_and_from_every_seed(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    several = study.replace(seeds=2, learning_rates=(1e-3, 4e-3), variants={"a b": (), "c": ("mixer=power",)})
    summary = run_study(several, tmp_path, progress=False)
    names = [f"rate-{rate}-seed-{seed}" for rate in (0.001, 0.004) for seed in (0, 1)]
    assert training.trained == [*names, *names]
    assert all(run_status(tmp_path / "a b" / name) == "finished" for name in names)
    assert summary.seeds == (0, 1)
    assert [len(variant.runs) for variant in summary.variants] == [4, 4]
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:5]] == [
        ["a b", rate, seed] for rate in ("0.001", "0.004") for seed in ("0", "1")
    ]
    run_study(several, tmp_path, progress=False)
    assert len(training.trained) == 8


def test_a_rate_of_a_variants_own_is_no_rate_of_the_study(study: Study) -> None:
    clash = study.replace(learning_rates=(1e-3,), variants={"a": ("training.learning_rate=1e-2",)})
    with pytest.raises(ConfigError, match=r"^variant 'a': training.learning_rate: must be left to the study's"):
        resolve_variants(clash)


def test_parameters_are_matched(study: Study) -> None:
    from zoo.accounting import count_parameters

    counts = [count_parameters(variant.recipe).total for variant in resolve_variants(study)]
    assert max(counts) / counts[0] < 1.01
    assert min(counts) / counts[0] > 0.99


@pytest.mark.parametrize("missing", ["matplotlib", "scipy"])
def test_without_what_it_needs_nothing_is_trained(
    missing: str, study: Study, training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.study.run.find_spec", lambda name: None if name == missing else True)
    with pytest.raises(ConfigError, match=rf"^a study needs {missing}, which .*pip install 'mixer-zoo\[plots\]'$"):
        run_study(study, tmp_path / "s")
    assert training.trained == []


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_an_unknown_device_is_an_error_before_training(
    device: str, study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"^device: must be one .*, got '{device}'$"):
        run_study(study, tmp_path / "s", device=device)
    assert training.trained == []
    assert not (tmp_path / "s").exists()


def test_a_corpus_that_is_too_short_is_an_error_before_training(
    study: Study, training: FakeTraining, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a\nb\n")
    with pytest.raises(CorpusError):
        run_study(study, tmp_path / "s")
    assert training.trained == []
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("undrawn")
def test_learned_positions_limit_the_contexts(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    learned = study.overridden(["model.positions=learned", "model.max_positions=1024"])
    assert run_study(learned, tmp_path / "s", progress=False).state_contexts == (256, 1024)
    shorter = study.overridden(["model.positions=learned", "model.max_positions=100"])
    assert run_study(shorter, tmp_path / "t", progress=False).state_contexts == (100,)


@pytest.mark.usefixtures("undrawn")
def test_progress_goes_to_standard_error(
    study: Study, training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for progress in (False, True):
        run_study(study, tmp_path / "s", progress=progress)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines() == [f"{name}: finished before" for name in study.variants if progress]


@pytest.mark.usefixtures("undrawn")
def test_a_run_says_what_it_was_trained_on(study: Study, training: FakeTraining, tmp_path: Path) -> None:
    run_study(study, tmp_path, progress=False)
    assert read_machine(tmp_path / "softmax") == describe_machine()
    assert read_machine(tmp_path) == describe_machine()


@pytest.mark.parametrize("mixers", [["power"], pytest.param(list(DEFAULT_MIXERS), marks=pytest.mark.slow)])
def test_a_real_study(mixers: list[str], recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "real"
    study = load_study(recipe, mixers, ["model.layers=1"])
    found = run_study(study, folder, progress=False)
    assert files_in(folder) == REPORT
    assert [variant.name for variant in found.variants] == mixers
    for variant in found.variants:
        assert variant.graph_breaks == variant.recompiles == 0
        assert variant.compile_seconds > 0
        assert variant.tokens == 3 * found.batch_tokens
        assert len(variant.validation.bits) == 3
        assert variant.final_bits < variant.validation.bits[0]
        assert variant.training_flops_per_token * variant.tokens == pytest.approx(variant.validation.flops[-1])
