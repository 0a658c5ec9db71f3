"""Runs as folders of transformers, with their tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo
import zoo.hf
from zoo.cli import main
from zoo.data import ByteTokenizer, RawTokens
from zoo.data.bpe import BytePairTokenizer
from zoo.errors import InputError
from zoo.training import load_run

TEXTS = ("Line 3 of a text.", "Ab  c\n\té \U0001f600\x00", "<|document|> as text")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("".join(f"Line {number} of a text about lines.\n" for number in range(400)))
    recipe = zoo.shrink(zoo.load_recipe("tiny")).override(
        [
            *(f"data.source={folder / 'text.txt'}", "data.validation_fraction=0.2", "mixer=gated-power"),
            *("training.compile=false", "training.steps=1", "training.warmup_steps=0"),
        ]
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    done = run("train", folder / "recipe.yaml", "--folder", folder / "run", "--device", "cpu")
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_an_exported_run_continues_a_text_as_the_zoo_does(trained: Path, tmp_path: Path) -> None:
    done = run("export", "--hf", trained, tmp_path)
    assert done.exit_code == 0, done.output
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Line 4", "A text about"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    found = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    _, decoder = load_run(trained)
    for text, row in zip(texts, found, strict=True):
        expected = zoo.generate(decoder, text, 8, temperature=0)
        assert tokenizer.decode(row[batch.input_ids.shape[1] :], skip_special_tokens=True) == expected


def test_what_it_is_for_has_to_be_said(trained: Path, tmp_path: Path) -> None:
    done = run("export", trained, tmp_path / "out")
    assert done.exit_code == 2
    assert "--hf" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = run("export", "--hf", tmp_path / "none", tmp_path / "out")
    assert done.exit_code == 2
    assert "holds no run" in done.stderr
    assert not (tmp_path / "out").exists()


def _byte_pairs() -> BytePairTokenizer:
    return BytePairTokenizer.train([b"a text about lines, and lines about a text " * 20], 300)


@pytest.mark.parametrize("make", [ByteTokenizer, _byte_pairs])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_zoo(make: Callable[[], ByteTokenizer], text: str, tmp_path: Path) -> None:
    tokenizer = make()
    zoo.hf.to_hf_tokenizer(tokenizer).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == tokenizer.vocab_size
    assert loaded.padding_side == "left"
    ids = loaded(text, split_special_tokens=True).input_ids
    assert ids == [tokenizer.separator, *tokenizer.encode(text).tolist()]
    assert loaded.decode(ids[1:]) == text


def test_ids_without_text_have_no_tokenizer() -> None:
    with pytest.raises(InputError, match="tokenizer: expected bytes or byte pairs, was RawTokens"):
        zoo.hf.to_hf_tokenizer(RawTokens(10))
