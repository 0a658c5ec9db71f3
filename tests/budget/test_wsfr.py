"""The tables: the published row to the digit, what is derived said to be so, and every format with the same numbers."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zoo.budget import Row, authors_table, budgets, exact_table, paper_table
from zoo.budget.paper import PUBLISHED, PUBLISHED_CONTEXTS
from zoo.budget.wsfr import mixer_label, variants
from zoo.cli import main
from zoo.errors import ConfigError, InputError
from zoo.recipe import load_recipe

MIXERS = ["softmax", "linear", "sliding-window:window=8192", "power:p=2", "power:p=3", "power:p=4"]


@pytest.fixture
def zoo() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def texts(row: Row) -> tuple[str, ...]:
    return tuple(ratio.text for ratio in row.ratios)


@pytest.mark.parametrize("name", ["gpt2-124m", "gpt2-124m-rotary"])
def test_the_published_rows(name: str) -> None:
    softmax, linear, window, *powers = paper_table(load_recipe(name), MIXERS, PUBLISHED_CONTEXTS).rows
    assert texts(softmax) == ("8:1", "1:1", "1:8", "1:125") == PUBLISHED[0][1]
    assert texts(window) == ("8:1", "1:1", "1:1", "1:1") == PUBLISHED[2][1]
    assert softmax.source == window.source == "published"
    assert texts(linear) == ("31:1",) * 4
    assert linear.source == "published as 30:1"
    assert [texts(row) for row in powers] == [("1.9:1",) * 4, ("1:11",) * 4, ("1:191",) * 4]
    assert {row.source for row in powers} == {"derived"}


def test_the_authors_formula_by_hand() -> None:
    contexts, names = (1_024, 8_192, 65_536, 1_000_000), [*MIXERS, "sliding-window"]
    softmax, linear, window, *powers, short = authors_table(load_recipe("gpt2-124m"), names, contexts).rows
    assert texts(softmax) == ("5:1", "1:1.6", "1:13", "1:195")
    assert [ratio.value for ratio in linear.ratios] == pytest.approx([30.0] * 4)
    assert texts(window) == ("5:1", "1:1.6", "1:1.6", "1:1.6")
    assert texts(short) == ("20:1",) * 4
    weights = 4 * 768**2 + 4 * 3_072 * 768
    for p, row in enumerate(powers, start=2):
        work = 12 * (256 * 64 + 4 * math.comb(64 + p - 1, p) * 64)
        assert [ratio.value for ratio in row.ratios] == pytest.approx([weights / work] * 4)
    assert softmax.source == "formula"


def test_the_authors_formula_is_a_choice_of_the_command(zoo: Callable[..., Result]) -> None:
    result = zoo("wsfr", "gpt2-124m", "--accounting", "authors", "--mixers", "softmax,linear")
    assert result.exit_code == 0, result.output
    assert "accounting: authors" in result.stdout
    assert "30:1" in result.stdout
    assert "e0e69051" in result.stdout
    refused = zoo("wsfr", "gpt2-124m", "--accounting", "authors", "--mixers", "mamba2")
    assert "accounting: authors has terms for caches of keys and for power attention" in refused.stderr


def test_what_was_not_published_is_derived() -> None:
    (other,) = paper_table(load_recipe("llama-360m"), ["softmax"], PUBLISHED_CONTEXTS).rows
    (wider,) = paper_table(load_recipe("gpt2-124m", ["mixer.heads=6"]), ["recipe"], PUBLISHED_CONTEXTS).rows
    (part,) = paper_table(load_recipe("gpt2-124m"), ["softmax"], (1_024, 4_096)).rows
    assert (other.source, wider.source) == ("derived", "derived")
    assert part.source == "published at 1,024; derived at 4,096"
    table = paper_table(load_recipe("gpt2-124m"), ["softmax"], (1_024,))
    assert "= 8,028 tokens" in table.formula
    assert table.notes[0] == "The formula is a fit to the published table; the authors' own is --accounting authors."


def test_a_hybrid_is_the_mean_of_its_layers_in_state_work() -> None:
    recipe = load_recipe("hybrid-124m")
    mixed, softmax, power = paper_table(recipe, ["recipe", "softmax", "gated-power"], [65_536]).rows
    work = [1 / row.ratios[0].value for row in (mixed, softmax, power)]
    assert work[0] == pytest.approx((3 * work[1] + 9 * work[2]) / 12)
    assert mixed.label == "gated-power (p=2) in 9 layers, softmax in 3 layers"


def test_only_published_contexts_are_called_published(zoo: Callable[..., Result], tmp_path: Path) -> None:
    path, contexts = tmp_path / "wsfr.csv", "1024,2048,4096,16384,32768,65536"
    arguments = ["gpt2-124m", "--accounting", "paper", "--mixers", "linear,power", "--contexts", contexts]
    result = zoo("wsfr", *arguments, "--csv", path)
    assert result.exit_code == 0, result.output
    sources = [line["source"] for line in csv.DictReader(path.read_text().splitlines())]
    assert sources == ["published as 30:1", *["derived"] * 4, "published as 30:1", *["derived"] * 6]
    hybrid = load_recipe("gpt2-124m", ["hybrid={mixer: linear, every: 4}"])
    (mixed,) = paper_table(hybrid, ["recipe"], PUBLISHED_CONTEXTS).rows
    assert mixed.source == "derived"


@pytest.mark.parametrize(("name", "around"), [("mamba2-130m", "mamba2"), ("rwkv7-124m", "rwkv7")])
def test_the_paper_formula_has_no_term_for_what_is_around_a_mixer(name: str, around: str) -> None:
    with pytest.raises(InputError, match=rf"no term for what model.around={around} .* softmax; set model.around=none"):
        paper_table(load_recipe(name), ["softmax"], [1_024])
    assert paper_table(load_recipe(name, ["model.around=none"]), ["softmax"], [1_024]).rows


def test_the_paper_formula_has_no_term_for_other_states() -> None:
    with pytest.raises(
        InputError,
        match=r"accounting: paper has terms for .*, not for mamba2 .*, or take exact, which has them for all",
    ):
        paper_table(load_recipe("gpt2-124m-rotary"), ["mamba2"], [1_024])


def test_exact_ratios_by_hand() -> None:
    table = exact_table(load_recipe("gpt2-124m-rotary"), ["softmax"], PUBLISHED_CONTEXTS)
    weights = 2 * (12 * 12 * 768**2 + 50_257 * 768)
    for ratio in table.rows[0].ratios:
        assert ratio.value == pytest.approx(weights / (12 * 4 * 768 * (ratio.context + 1) / 2))
        assert ratio.budget is not None
        assert ratio.budget.weight_flops == weights
    assert texts(table.rows[0]) == ("13:1", "1.6:1", "1:4.9", "1:75")
    assert table.rows[0].source == "counted"


def test_softmax_ratios_fall_with_the_context_and_those_of_a_fixed_state_stay() -> None:
    table = exact_table(load_recipe("hybrid-124m"), ["recipe", "softmax", "power"], [2**14, 2**17, 2**20])
    hybrid, softmax, power = ([ratio.value for ratio in row.ratios] for row in table.rows)
    assert power[0] == pytest.approx(power[2], rel=1e-3)
    assert softmax[0] / softmax[2] == pytest.approx(64, rel=1e-3)
    assert softmax[2] < hybrid[2] < power[2]


def test_variants_are_of_one_mixer_each_and_alike_once() -> None:
    recipe = load_recipe("hybrid-124m")
    found = variants(recipe, ["recipe", "power", "power:p=2", "power:p=3:normalize=false"])
    assert [mixer_label(each) for each in found[1:]] == ["power (p=2)", "power (p=3, normalize=False)"]
    assert found[0] == recipe
    assert [each.hybrid for each in found[1:]] == [None, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("powr", r"mixers: expected recipe, softmax, .*, was 'powr' \(did you mean 'power'\?\)"),
        ("recipe:p=3", "mixers: recipe takes no options, was 'recipe:p=3'"),
        ("softmax:p=3", "mixer.p"),
        ("power:p=3:p=2", "mixers: expected p once, was 'power:p=3:p=2'"),
    ],
)
def test_unknown_mixers_and_options(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variants(load_recipe("tiny"), [name])


def test_learned_positions_are_no_limit_and_that_is_said() -> None:
    contexts = [512, 8_192]
    table = exact_table(load_recipe("gpt2-124m"), ["softmax"], contexts)
    assert [ratio.budget for ratio in table.rows[0].ratios] == list(budgets(load_recipe("gpt2-124m"), contexts))
    assert "1,024 learned positions" in table.notes[0]
    assert exact_table(load_recipe("gpt2-124m"), ["softmax"], [512]).notes == ()


def test_files_hold_what_is_printed(zoo: Callable[..., Result], tmp_path: Path) -> None:
    files = {suffix: tmp_path / f"wsfr.{suffix}" for suffix in ("csv", "json", "png", "svg")}
    options = ["--mixers", "softmax, power:p=3", "--contexts", "1024,65536"]
    result = zoo("wsfr", "tiny", *options, "--csv", files["csv"], "--json", files["json"], "--plot", files["png"])
    assert result.exit_code == 0, result.output
    lines = list(csv.DictReader(files["csv"].read_text().splitlines()))
    values = json.loads(files["json"].read_text())
    ratios = [ratio for row in values["rows"] for ratio in row["ratios"]]
    assert [(line["mixer"], line["context"]) for line in lines] == [
        ("softmax", "1024"), ("softmax", "65536"), ("power (p=3)", "1024"), ("power (p=3)", "65536"),
    ]  # fmt: skip
    for line, ratio in zip(lines, ratios, strict=True):
        assert ratio["text"] in result.stdout
        assert float(line["ratio"]) == ratio["ratio"]
        assert math.isclose(ratio["ratio"], ratio["weight_flops_per_token"] / ratio["state_flops_per_token"])
        assert ratio["training_flops_per_token"] == 3 * ratio["forward_flops_per_token"]
        assert int(line["state_bytes"]) == ratio["state_bytes"] > 0
    assert values["accounting"] == "exact"
    assert values["formula"] in " ".join(result.stdout.split())
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert zoo("wsfr", "tiny", *options, "--plot", files["svg"]).exit_code == 0
    assert b"<svg" in files["svg"].read_bytes()


def test_a_file_on_standard_output_has_it_to_itself(zoo: Callable[..., Result]) -> None:
    options = ["tiny", "--mixers", "softmax", "--contexts", "1024"]
    for name, read in (("--csv", lambda text: list(csv.DictReader(text.splitlines()))), ("--json", json.loads)):
        result = zoo("wsfr", *options, name, "-")
        assert result.exit_code == 0, result.output
        assert read(result.stdout)
        assert "Weight-state FLOP ratio" in result.stderr
    assert zoo("wsfr", *options, "--plot", "-").stdout_bytes.startswith(b"\x89PNG")
    result = zoo("wsfr", *options, "--csv", "-", "--json", "-")
    assert result.stderr == "Error: csv, json: expected at most one of them on standard output\n"


def test_the_recipe_can_be_left_out(zoo: Callable[..., Result]) -> None:
    result = zoo("wsfr", "model.layers=2", "--mixers", "softmax")
    assert result.exit_code == 0, result.output
    assert "gpt2-124m-rotary" in result.stdout
    paper = zoo("wsfr", "gpt2-124m", "--accounting", "paper", "--mixers", "softmax,power")
    assert "8:1     1:1      1:8       1:125   published" in paper.stdout
    assert "derived" in paper.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contexts", "0"), "'--contexts': expected a number of tokens from 1 on, such as 65536 or 64K, was '0'"),
        (("--contexts", "1024,many"), "expected a number of tokens from 1 on, such as 65536 or 64K, was 'many'"),
        (("--mixers", "powr"), "was 'powr' (did you mean 'power'?)"),
        (("gpt3-124m",), "unknown recipe 'gpt3-124m' (did you mean 'gpt2-124m'?)"),
        (("--plot", "wsfr.gif"), "plot: expected a file name that ends in .png or .svg, was 'wsfr.gif'"),
    ],
)
def test_what_is_refused_is_one_line(zoo: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    result = zoo("wsfr", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
