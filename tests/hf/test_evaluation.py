"""`zoo evaluate`: tasks on runs, exported and converted models, with scores that are counted again here."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from torch import Tensor

import zoo
import zoo.hf
from zoo.cli import main
from zoo.data import ByteTokenizer
from zoo.errors import InputError
from zoo.training import train

QUESTIONS = [{"text": f"Line {i} of", "choices": [" a text", " lines.", f" {i}"], "answer": i % 3} for i in range(6)]
TASKS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "zoo.hf.evaluation", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = run(tmp_path, "--tasks", "letters")
    assert done.exit_code == 1
    assert "needs an optional library (lm_eval): pip install 'mixer-zoo[eval]'" in done.stderr
    assert "zoo.hf.evaluation" not in sys.modules


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the files of some tasks, which read a file beside them."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in TASKS.items():
        place = {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder / "cache")}
        values = {"task": name, "dataset_path": "json", "dataset_kwargs": place, "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, zoo.models.Decoder]:
    """A zoo model in a folder of transformers, and the same in this process."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    recipe = zoo.shrink(zoo.load_recipe("tiny", ["model.initializer_range=0.3"]))
    decoder = zoo.build(recipe, mixer="gated-power")
    zoo.hf.to_hf(decoder, eos_token_id=256, pad_token_id=256).save_pretrained(folder)
    zoo.hf.to_hf_tokenizer(ByteTokenizer()).save_pretrained(folder)
    return folder, decoder


@torch.no_grad()
def log_likelihood(logits: Callable[[Tensor], Tensor], context: str, text: str) -> float:
    """Return the logarithm of the probability of a text after a context, in nats."""
    ids = torch.tensor([[256, *(context + text).encode()]])
    scores = logits(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
    return float(scores[len(context.encode()) :].sum())


def accuracy(logits: Callable[[Tensor], Tensor]) -> float:
    def right(question: dict[str, Any]) -> bool:
        scores = [log_likelihood(logits, question["text"], choice) for choice in question["choices"]]
        return scores.index(max(scores)) == question["answer"]

    return sum(map(right, QUESTIONS)) / len(QUESTIONS)


def test_scores_are_those_of_the_model_itself(model: tuple[Path, Any], tasks: Path, tmp_path: Path) -> None:
    folder, decoder = model
    done = run(folder, "--tasks", tasks, "--json", tmp_path / "scores.json", "--batch", 3, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == sorted(TASKS)
    found = json.loads((tmp_path / "scores.json").read_text())
    scores = {score["task"]: score for score in found["scores"]}
    assert {score["samples"] for score in scores.values()} == {6}
    assert scores["letters"]["value"] == pytest.approx(accuracy(lambda ids: decoder(ids).logits))
    texts = [question["text"] for question in QUESTIONS]
    nats = sum(log_likelihood(lambda ids: decoder(ids).logits, "", text) for text in texts)
    expected = -nats / sum(map(len, texts)) / torch.tensor(2.0).log().item()
    assert scores["texts"]["value"] == pytest.approx(expected, rel=1e-5)
    continued = zoo.generate(decoder, texts, 4, stop="\n")
    right = [text == question["choices"][0] for text, question in zip(continued, QUESTIONS, strict=True)]
    assert scores["answers"]["value"] == sum(right) / len(right)


def test_a_converted_model_is_evaluated(tasks: Path, tmp_path: Path) -> None:
    from zoo.hf.evaluation import evaluate

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    converted = transformers.LlamaForCausalLM(config).eval()
    zoo.hf.convert(converted, "gated-power")
    converted.save_pretrained(tmp_path)
    zoo.hf.to_hf_tokenizer(ByteTokenizer()).save_pretrained(tmp_path)
    found = evaluate(tmp_path, [str(tasks / "letters.yaml")], limit=6, shots=0, device="cpu")
    (score,) = found.scores
    assert (score.task, score.measure, score.samples) == ("letters", "acc", 6)
    assert score.value == pytest.approx(accuracy(lambda ids: converted(ids).logits))


def test_a_run_is_evaluated(tasks: Path, tmp_path: Path) -> None:
    from zoo.hf.evaluation import evaluate

    (tmp_path / "text.txt").write_text("".join(f"Line {number} of a text about lines.\n" for number in range(400)))
    recipe = zoo.shrink(zoo.load_recipe("tiny", [f"data.source={tmp_path / 'text.txt'}", "training.compile=false"]))
    train(recipe.override(["training.steps=1", "training.warmup_steps=0"]), tmp_path / "run", device="cpu")
    zoo.hf.export_run(tmp_path / "run", tmp_path / "exported")
    scores = [evaluate(tmp_path / name, [str(tasks)], device="cpu").scores for name in ("run", "exported")]
    assert scores[0] == scores[1]


def test_the_commands_of_the_page_run(model: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    page = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text().partition("## Published tasks\n")[2]
    commands, task = (re.search(rf"^```{kind}\n(.*?)^```$", page, re.M | re.S)[1] for kind in ("sh", "yaml"))
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "exported"):
        Path(folder).mkdir()
        Path(folder, "tiny").symlink_to(model[0])
    Path("tasks").mkdir()
    Path("tasks/letters.yaml").write_text(task)
    Path("tasks/letters.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for command in commands.splitlines():
        done = run(*command.split()[2:])
        assert done.exit_code == 0, done.output
        assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["letters"] * 2
    assert json.loads(Path("scores.json").read_text())["scores"][0]["samples"] == 5


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "tasks: expected a task at least, got none"),
        (["none.yaml"], "tasks: 'none.yaml' is no file"),
        (["{model}"], "holds no YAML file of a task"),
        (["{here}/it.yaml"], "cannot be run: "),
    ],
)
def test_tasks_that_there_are_not_are_named(
    names: list[str], line: str, model: tuple[Path, Any], tasks: Path, tmp_path: Path
) -> None:
    from zoo.hf.evaluation import evaluate

    place = {"data_files": {"test": str(tmp_path / "none.jsonl")}}
    (tmp_path / "it.yaml").write_text(json.dumps({"task": "it", "dataset_path": "json", "dataset_kwargs": place}))
    with pytest.raises(InputError, match=line) as refused:
        evaluate(model[0], [name.format(model=model[0], here=tmp_path) for name in names], device="cpu")
    assert "\n" not in str(refused.value)


def test_a_name_that_the_harness_does_not_know_is_named(model: tuple[Path, Any], tasks: Path) -> None:
    done = run(model[0], "--tasks", "arc_esy", "--device", "cpu")
    assert done.exit_code == 2
    assert "'arc_esy' is neither a task of the harness nor a path (did you mean 'arc_easy'?)" in done.stderr


def test_the_options_are_checked(model: tuple[Path, Any], tasks: Path) -> None:
    evaluate = importlib.import_module("zoo.hf.evaluation").evaluate
    with pytest.raises(InputError, match="batch_size: expected a whole number from 1 on, was 0"):
        evaluate(model[0], [str(tasks)], batch_size=0)
    with pytest.raises(InputError, match="path: expected a folder with config"):
        evaluate(tasks, [str(tasks)])
