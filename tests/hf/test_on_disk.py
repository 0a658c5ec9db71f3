"""`zoo convert`: from a folder of transformers to a converted and trained one, in one command."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo.hf
from zoo.cli import main
from zoo.data import ByteTokenizer
from zoo.hf.on_disk import Plan, convert_on_disk
from zoo.hf.stages import Stage

from .stages.following import StopAfter, StoppedError

SHORT = ("--context", 16, "--batch", 2, "--device", "cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of bytes with its tokenizer, and a text beside it."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, dtype="bfloat16",
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    zoo.hf.to_hf_tokenizer(ByteTokenizer()).save_pretrained(folder / "model")
    (folder / "text.txt").write_text("".join(f"Line {number} of a text about lines.\n" for number in range(200)))
    return folder


def test_one_command_converts_and_trains(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    done = run(
        source / "model", out, "--mixer", "gated-power", "-p", 2, "--text", source / "text.txt",
        "--transfer-tokens", 64, "--distill-tokens", 70, "--evaluation-tokens", 96, *SHORT,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 of 2 layers converted to gated-power (p=2, offset=learned)" in done.stdout
    assert "transfer: 2 steps, 64 tokens" in done.stdout
    assert "distill: 3 steps, 96 tokens" in done.stdout
    stages = json.loads((out / "stages.json").read_text())
    assert list(stages) == ["transfer", "distill"]
    assert [stage["evaluation_tokens"] for stage in stages.values()] == [96, 96]
    assert stages["transfer"]["teacher_perplexity"] == pytest.approx(stages["distill"]["teacher_perplexity"], rel=1e-4)
    assert not (out / "stages").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "ZooLlamaForCausalLM"
    ids = tokenizer("Line 3", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape == (1, ids["input_ids"].shape[1] + 3)


def test_without_tokens_the_model_is_converted_alone(source: Path, tmp_path: Path) -> None:
    done = run(
        source / "model", tmp_path / "new", "--mixer", "power", "--offset", 0, "--layers", "1", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    assert "1 of 2 layers converted to power (p=2)" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert model.dtype == torch.bfloat16
    assert model.config.zoo["heads"].keys() == {"1"}
    assert not (tmp_path / "new" / "stages.json").exists()


@pytest.mark.parametrize("stopped_in", ["transfer", "distill"])
def test_a_stopped_one_goes_on_to_the_same_weights(source: Path, tmp_path: Path, stopped_in: str) -> None:
    stage = Stage(context_length=16, batch_size=2, steps=4, checkpoint_every=2, learning_rate=1e-3)
    plan = Plan({}, str(source / "text.txt"), transfer=stage, distill=stage)
    convert_on_disk(source / "model", tmp_path / "whole", plan, device="cpu")

    def progress(name: str) -> StopAfter:
        return StopAfter(2 if name == stopped_in else -1)

    with pytest.raises(StoppedError):
        convert_on_disk(source / "model", tmp_path / "parts", plan, device="cpu", progress=progress)
    assert not (tmp_path / "parts" / "config.json").exists()
    convert_on_disk(source / "model", tmp_path / "parts", plan, device="cpu")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("{model}", "{out}", "--text", "{text}"), "say how long to train: --transfer-tokens or --distill-tokens"),
        (("{model}", "{out}", "--transfer-tokens", "1K"), "say what to train on: --text"),
        (("{model}", "{out}", "--offset", "free"), "expected a number or 'learned', was 'free'"),
        (("{model}", "{out}", "--layers", "a"), "expected indices with commas"),
        (("{model}", "{out}", "--layers", "7"), "layers: expected indices from 0 to 1, was 7"),
        (("{model}", "{out}", "--text", "{out}/none", "--transfer-tokens", "64"), "data.source: "),
        (("{model}", "{out}", "-p", "9"), "p: must be less than or equal to 4"),
        (("nowhere", "{out}"), "path: expected a folder with config.json and safetensors, or a .gguf file"),
        (("{model}", "{model}"), "holds a model already; name a new folder"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    names = {"model": source / "model", "out": tmp_path / "out", "text": source / "text.txt"}
    done = run(*(argument.format(**names) for argument in arguments))
    assert done.exit_code == 2
    assert line in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    done = run(source / "model", tmp_path)
    assert done.exit_code == 2
    assert "holds something else" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_weights_that_run_code_are_not_loaded(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes((source / "model" / "config.json").read_bytes())
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    done = run(tmp_path / "model", tmp_path / "out")
    assert done.exit_code == 2
    assert "cannot be loaded" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_gguf_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(64))
    done = run(tmp_path / "model.gguf", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "cannot be loaded" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
