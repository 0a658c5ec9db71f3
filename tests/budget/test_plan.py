"""Plans: every printed line is the model that it says it is."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from zoo.budget import Budget, budgets, make_plan, parse_parameters
from zoo.budget.plan import Choice
from zoo.budget.times import MixingTime, read_times
from zoo.builder import build, configure
from zoo.cli import main
from zoo.errors import ConfigError, InputError
from zoo.recipe import load_recipe
from zoo.report.numbers import count


@pytest.fixture
def zoo() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_printed_lines_are_models_of_the_printed_size(zoo: Callable[..., Result]) -> None:
    options = ["--mixers", "power,gated-power", "--limit", "3"]
    result = zoo("plan", "--params", "124M", "--context", "65536", *options)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("gpt2-124m-rotary ")]
    assert len(lines) == 4  # and the smallest that was left out
    rows = [
        line.split()
        for line in result.stdout.splitlines()
        if line.startswith((" power ", " gated-power ", "power ", "gated-power "))
    ]
    for (recipe, *overrides), row in zip(lines, rows, strict=False):
        configured = configure(recipe, overrides=overrides)
        assert count(build(configured, device="meta").num_parameters()) in row
        (budget,) = budgets(configured, [65_536], torch.bfloat16)
        assert f"{budget.ratio:#.3g}" in row
        assert (row[0], row[1]) == (configured.mixer.name, str(configured.mixer.p))


@pytest.mark.parametrize(("base", "size"), [("gpt2-124m-rotary", "124M"), ("llama-360m", "360M"), ("tiny", "1.4M")])
def test_choices_are_in_order_and_as_counted(base: str, size: str) -> None:
    target = parse_parameters(size)
    plan = make_plan(target, 8_192, ["softmax", "power"], base=base, limit=4)
    assert plan.choices
    distances = [abs(math.log(choice.budget.ratio)) for choice in plan.choices]
    assert distances == sorted(distances)
    for choice in plan.choices:
        configured = configure(base, overrides=choice.overrides)
        assert (configured.model.layers, configured.model.width) == (choice.layers, choice.width)
        assert configured.model.layer_context(0).head_width == choice.head_width
        assert abs(choice.parameters / target - 1) <= 0.05
        assert (choice.budget,) == budgets(configured, [8_192], torch.bfloat16)
        assert choice.decode_bytes(3) == 2 * choice.parameters + 3 * choice.budget.state_bytes
        assert choice.budget.state_bytes <= plan.state_limit


def test_large_states_are_left_out_and_the_smallest_is_named(zoo: Callable[..., Result]) -> None:
    plan = make_plan(124_000_000, 65_536, ["power"], state_limit=100 * 2**20)
    smallest = plan.smallest_left_out
    assert smallest is not None
    assert smallest.budget.state_bytes > plan.state_limit
    assert all(choice.budget.state_bytes <= plan.state_limit for choice in plan.choices)
    wider = make_plan(124_000_000, 65_536, ["power"], state_limit=smallest.budget.state_bytes, limit=10**6)
    assert smallest in wider.choices
    assert wider.left_out < plan.left_out
    everything = make_plan(124_000_000, 65_536, ["power"], state_limit=2**60, limit=1)
    assert everything.left_out  # the op makes no state of p = 4 with heads of width 128
    none = zoo("plan", "--params", "124M", "--context", "65536", "--mixers", "softmax", "--state-limit", "0.001")
    assert none.exit_code == 0, none.output
    assert "none within the limit" in none.stdout
    assert "Left out: " in none.stdout


@pytest.mark.parametrize("limit", ["nan", "inf", "-1", "0"])
def test_a_state_limit_is_a_number(zoo: Callable[..., Result], limit: str) -> None:
    refused = zoo("plan", "--params", "124M", "--context", "1024", "--state-limit", limit)
    assert refused.exit_code == 2
    assert "--state-limit" in refused.output


def test_head_widths_that_make_no_difference_are_one_choice() -> None:
    plan = make_plan(124_000_000, 8_192, ["softmax"], limit=100)
    shapes = [(choice.layers, choice.width) for choice in plan.choices]
    assert len(set(shapes)) == len(shapes)
    assert {choice.head_width for choice in plan.choices} == {64}


def test_a_hybrid_base_loses_its_second_mixer() -> None:
    (choice,) = make_plan(124_000_000, 8_192, ["linear"], base="hybrid-124m", limit=1).choices
    assert "hybrid=null" in choice.overrides
    assert load_recipe("hybrid-124m", choice.overrides).hybrid is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("124M", 124_000_000),
        ("124m", 124_000_000),
        ("1.3b", 1_300_000_000),
        ("1.3B", 1_300_000_000),
        ("350000000", 350_000_000),
        ("350k", 350_000),
        ("0.5M", 500_000),
    ],
)
def test_sizes_are_parsed(text: str, number: int) -> None:
    assert parse_parameters(text) == number


@pytest.mark.parametrize("text", ["", "M", "-1M", "12X", "1e8", "0", "1,3B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="params: expected a number of parameters such as 124M"):
        parse_parameters(text)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ConfigError, match=r"mixers: expected softmax, .*, was 'powr' \(did you mean 'power'\?\)"):
        make_plan(124_000_000, 1_024, ["powr"])
    with pytest.raises(ConfigError, match="unknown recipe 'gpt3'"):
        make_plan(124_000_000, 1_024, base="gpt3")
    with pytest.raises(InputError, match="contexts: expected numbers of tokens from 1 to "):
        make_plan(124_000_000, 0)
    with pytest.raises(
        InputError, match="context: expected at most the 1,024 learned positions of gpt2-124m, was 2,048"
    ):
        make_plan(124_000_000, 2_048, base="gpt2-124m")
    with pytest.raises(InputError, match="params: expected a number that gpt2-124m-rotary comes within 5% of"):
        make_plan(1_000_000, 1_024, ["softmax"])


def test_the_command_refuses_in_one_line(zoo: Callable[..., Result]) -> None:
    result = zoo("plan", "--params", "much", "--context", "10")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: params: expected a number of parameters such as 124M, 1.3B or 350000000, was 'much'\n"
    )
    assert "Invalid value for '--context'" in zoo("plan", "--params", "1M", "--context", "0").stderr


def test_lines_are_trained_at_the_context_asked_for(zoo: Callable[..., Result]) -> None:
    options = ["--mixers", "power", "--limit", "2", "--recipe", "tiny"]
    results = [zoo("plan", "--params", size, "--context", context, *options).stdout
               for size, context in (("1.4m", "2k"), ("1.4M", "2K"), ("1400000", "2048"))]  # fmt: skip
    assert results[0] == results[1] == results[2]
    lines = [line.split() for line in results[0].splitlines() if line.startswith("tiny ")]
    assert lines
    for recipe, *overrides in lines:
        assert load_recipe(recipe, overrides).training.context_length == 2_048
    (choice,) = make_plan(1_400_000, 256, ["power"], base="tiny", limit=1).choices
    assert not any("context_length" in override for override in choice.overrides)


def test_assumptions_are_printed(zoo: Callable[..., Result]) -> None:
    result = zoo(
        "plan", "--params", "1.4M", "--context", "512", "--recipe", "tiny", "--mixers", "linear", "--batch-size", "7"
    )
    said = " ".join(result.stdout.split())
    for part in ("Base recipe tiny", "tied with the head", "multiples of 64", "head widths 32, 64, 128", "init_state",
                 "3 times the forward pass", "the states of 7 sequences"):  # fmt: skip
        assert part in said


def test_what_a_base_has_not_is_said_so(zoo: Callable[..., Result]) -> None:
    said = " ".join(zoo("plan", "--params", "130M", "--context", "1K", "--recipe", "mamba2-130m", "--mixers", "linear",
                        "--batch-size", "1").stdout.split())  # fmt: skip
    assert "no feed-forward layers, rmsnorm, no positions, vocabulary of" in said
    assert "the states of 1 sequence, no activations" in said


HEADER = "op,contestant,head_width,p,tokens,passes,seconds,flops_per_second,matmul_share,batch_size,heads"


def test_times_scale_from_the_nearest_length(tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    table.write_text(
        f"{HEADER}\npower,power,64,2,1024,forward,1,1e12,0.1,1,4\n"
        "power,power,64,2,4096,forward+backward,0.5,2e14,0.25,2,4\n"
        "power,power,64,2,8192,forward+backward,,,,2,4\n"
        f"{HEADER}\npower,softmax-cudnn,64,2,4096,forward+backward,0.25,,,1,8\n"
    )
    times = read_times(table)
    assert times.peak == 8e14

    def mixing(mixer: str, p: int | None, head_width: int = 64) -> MixingTime | None:
        budget = Budget(8_192, 10**8, 10**7, 1)
        return times.mixing(Choice(mixer, p, head_width, 3, 512, (), 1, budget))

    for mixer in ("power", "gated-power"):
        found = mixing(mixer, 2)
        assert found is not None
        assert found.seconds == pytest.approx(3 * 8 * 0.5 / 8 * 2)  # a token costs what it costs
        assert found.share == pytest.approx(3 * 10**7 * 8_192 / found.seconds / 8e14)
    softmax = mixing("softmax", None)
    assert softmax is not None
    assert softmax.seconds == pytest.approx(3 * 8 * 0.25 / 8 * 4)  # each of twice as many sees twice as many
    for other in (mixing("power", 3), mixing("linear", None), mixing("power", 2, 32), mixing("mamba2", None)):
        assert other is None


def test_a_slow_model_is_said_to_be_slow(zoo: Callable[..., Result], tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    table.write_text(
        f"{HEADER}\npower,power,32,3,65536,forward+backward,0.06,6.6e13,0.08,1,24\n"
        "power,power,64,1,65536,forward+backward,0.001,4.9e13,0.06,1,8\n"
    )
    plan = ("plan", "--params", "124M", "--context", "65536", "--limit", "1", "--times", str(table), "--mixers")
    assert "power p = 3, heads of 32: 8%" in zoo(*plan, "power").stdout.replace("\n", " ")
    assert "Slow" not in zoo(*plan, "linear").stdout  # which moves memory, and takes little time for it


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "has no 'op'"),
        (f"{HEADER}\npower,power,64,2,4096,forward+backward,fast,1,1,1,1\n", "line 2"),
        (f"{HEADER}\npower,power,64,2,4096,forward+backward,1,1,0,1,1\n", "line 2"),
        (f"{HEADER}\npower,power,64,2,4096,forward,1,1,1,1,1\n", "expected a timed"),
        ("", "has no 'op'"),
        (None, "could not read"),
    ],
)
def test_times_that_are_none_are_refused(
    zoo: Callable[..., Result], tmp_path: Path, text: str | None, says: str
) -> None:
    table = tmp_path / "times.csv"
    if text is not None:
        table.write_text(text)
    refused = zoo("plan", "--params", "124M", "--context", "1024", "--times", str(table))
    assert refused.exit_code == 2, refused.output
    assert says in refused.output
    assert len(refused.output.strip().splitlines()) == 1
