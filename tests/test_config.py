"""Strict configs: what they refuse, what the line says, and that text and configs go round."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from zoo.config import Config, apply_overrides, dump_yaml, load_yaml, parse_yaml
from zoo.errors import ConfigError


class Square(Config):
    name: Literal["square"] = "square"
    side: float = Field(1.0, gt=0)


class Polygon(Config):
    name: Literal["polygon"] = "polygon"
    corners: int = Field(3, ge=3)
    lengths: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Polygon":
        if self.lengths and len(self.lengths) != self.corners:
            raise ValueError(f"lengths must be {self.corners} numbers, got {len(self.lengths)}")
        return self


class Paper(Config):
    width: int = 210
    color: Literal["white", "yellow"] = "white"
    ruled: bool = False


class Drawing(Config):
    title: str
    paper: Paper = Paper()
    shape: Annotated[Square | Polygon, Field(discriminator="name")] = Square()


def line(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(values: dict[Any, Any]) -> str:
    return line(Drawing.from_mapping, {"title": "a"} | values, "a.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"papre": {}}, "papre: unknown key (did you mean 'paper'?)"),
        ({"paper": {"widht": 1}}, "paper.widht: unknown key (did you mean 'width'?)"),
        ({"ruled": True}, "ruled: unknown key (did you mean 'paper.ruled'?)"),
        ({"qqq": 1}, "qqq: unknown key; the keys are title, paper, shape"),
        ({"a\nb": 1}, "'a\\nb': unknown key; the keys are title, paper, shape"),
        ({3: 1}, "3: unknown key; the keys are title, paper, shape"),
        ({"paper": {"width": "12"}}, "paper.width: must be a valid integer, got '12'"),
        ({"paper": {"width": 12.0}}, "paper.width: must be a valid integer, got 12.0"),
        ({"paper": {"width": True}}, "paper.width: must be a valid integer, got True"),
        ({"paper": {"width": None}}, "paper.width: must be a valid integer, got None"),
        ({"paper": {"ruled": 1}}, "paper.ruled: must be a valid boolean, got 1"),
        ({"paper": {"ruled": "yes"}}, "paper.ruled: must be a valid boolean, got 'yes'"),
        (
            {"paper": {"color": "whiet"}},
            "paper.color: must be 'white' or 'yellow', got 'whiet' (did you mean 'white'?)",
        ),
        ({"paper": 3}, "paper: must be a mapping of keys to values, got 3"),
        ({"title": 3}, "title: must be a valid string, got 3"),
        ({"shape": {"name": "square", "side": 0}}, "shape.side: must be greater than 0, got 0"),
        ({"shape": {"name": "square", "side": float("nan")}}, "shape.side: must be a finite number, got nan"),
        ({"shape": {"name": "square", "side": True}}, "shape.side: must be a valid number, got True"),
        ({"shape": {"name": "square", "corners": 4}}, "shape.corners: unknown key; the keys are name, side"),
        ({"shape": {"name": "polygon", "lengths": [1, "a"]}}, "shape.lengths.1: must be a valid integer, got 'a'"),
        ({"shape": {"name": "polygon", "lengths": [1]}}, "shape: lengths must be 3 numbers, got 1"),
        ({"shape": {"side": 1}}, "shape.name: missing"),
        (
            {"shape": {"name": "sqare"}},
            "shape.name: must be one of 'square', 'polygon', got 'sqare' (did you mean 'square'?)",
        ),
    ],
)
def test_a_bad_value_is_named_by_file_and_key(values: dict[str, Any], expected: str) -> None:
    assert refused(values) == f"a.yaml: {expected}"


def test_missing_keys_and_further_errors_are_told() -> None:
    assert line(Drawing.from_mapping, {}, "a.yaml") == "a.yaml: title: missing"
    assert refused({"paper": {"width": "a", "ruled": "b"}}).endswith("got 'a' (and 1 more error)")
    assert line(Drawing.from_mapping, [1], "a.yaml") == "a.yaml: must be a mapping of keys to values, got [1]"


def test_configs_made_in_python_are_as_strict() -> None:
    assert line(Paper, width="12") == "Paper: width: must be a valid integer, got '12'"
    assert line(Drawing, title="a", shape={"name": "square", "side": -1}) == (
        "Drawing: shape.side: must be greater than 0, got -1"
    )
    assert line(Paper().replace, widht=3) == "Paper: widht: unknown key (did you mean 'width'?)"
    assert Paper().replace(width=3) == Paper(width=3)
    with pytest.raises(ValueError, match="frozen"):
        Paper().width = 3  # type: ignore[misc]


def test_long_values_are_shortened() -> None:
    assert len(refused({"paper": {"width": "9" * 5000}})) < 120


def test_dotted_keys_reach_into_unions() -> None:
    assert set(Drawing.dotted_keys()) == {
        *("title", "paper", "paper.width", "paper.color", "paper.ruled"),
        *("shape", "shape.name", "shape.side", "shape.corners", "shape.lengths"),
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("6e-4", 6e-4),
        ("-1E+5", -1e5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("3", 3),
        ("1_000", 1000),
        ("010", "010"),
        ("1:30", "1:30"),
        ("off", "off"),
        ("no", "no"),
        ("none", "none"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("data/*.bin", "data/*.bin"),
    ],
)
def test_yaml_values_are_what_they_look_like(text: str, value: object) -> None:
    parsed = parse_yaml(text, "")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml, line 3: key 'a' stands twice"),
        ("a:\n  b: 1\n  b: 1", "a.yaml, line 3: key 'b' stands twice"),
        ("a: 1\nb: [1", "a.yaml, line 2: expected ',' or ']', but got '<stream end>'"),
        ("a: *b", "a.yaml, line 1: aliases are not taken, got '*b'"),
        ("a: &b [1]\nc: *b", "a.yaml, line 2: aliases are not taken, got '*b'"),
        ("&a [*a]", "a.yaml, line 1: aliases are not taken, got '*a'"),
        ("&a {b: *a}", "a.yaml, line 1: aliases are not taken, got '*a'"),
        ("a: !!timestamp x", "a.yaml, line 1: tags are not taken, got '!!timestamp'"),
        ("a: !!int ''", "a.yaml, line 1: tags are not taken, got '!!int'"),
        ("? !!bool x\n: 1", "a.yaml, line 1: tags are not taken, got '!!bool'"),
        ("a: ! x", "a.yaml, line 1: tags are not taken, got '!'"),
        ("a: 1\n---\nb: 2", "a.yaml, line 2: but found another document"),
        ("a: !!python/object/apply:os.system ['true']", "a.yaml, line 1: tags are not taken"),
        ("a: !thing 3", "a.yaml, line 1: tags are not taken, got '!thing'"),
        ("? [1]\n: 2", "a.yaml, line 1: found unhashable key"),
        ("a: \x01", "a.yaml: not valid YAML: unacceptable character"),
        ("[" * 5000, "a.yaml, line 1: nested too deeply, over 32 levels"),
        ("a: " + "1" * 5000, "a.yaml: not valid YAML: Exceeds the limit"),
    ],
)
def test_bad_yaml_is_named_by_file_and_line(text: str, expected: str) -> None:
    assert line(parse_yaml, text, "a.yaml").startswith(expected)


@pytest.mark.parametrize(
    "tag", ["null", "bool", "int", "float", "binary", "timestamp", "omap", "pairs", "set", "str", "seq", "map", "value"]
)
@pytest.mark.parametrize("value", ["x", "''", "[x]", "{x: 1}"])
def test_no_tag_of_yaml_is_taken(tag: str, value: str) -> None:
    assert line(parse_yaml, f"a: !!{tag} {value}", "a.yaml") == f"a.yaml, line 1: tags are not taken, got '!!{tag}'"


def test_few_bytes_cannot_stand_for_much_data() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert line(parse_yaml, "\n".join(rows), "a.yaml") == "a.yaml, line 2: aliases are not taken, got '*a0'"


def test_a_file_of_any_length_is_told_soon(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for length in (2**18 + 1, 2**30):
        with path.open("wb") as file:
            file.write(b"a")
            file.truncate(length)
        assert line(load_yaml, path) == f"{path}: too long for a recipe or a study, over 262,144 characters"


def test_shared_data_are_written_in_full() -> None:
    shared = [1, 2]
    assert parse_yaml(dump_yaml({"a": shared, "b": shared}), "") == {"a": shared, "b": shared}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert line(load_yaml, tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert line(load_yaml, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    assert line(load_yaml, path) == f"{path}: not UTF-8 text"
    for text in ("", "- 1", "3"):
        path.write_text(text)
        assert line(load_yaml, path).startswith(f"{path}: must hold a mapping of keys to values, got ")


def test_no_tag_runs_anything(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for tag in ("object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"):
        line(parse_yaml, f"a: !!python/{tag} ['{witness}']", "a.yaml")
        line(apply_overrides, {}, [f"a=!!python/{tag} ['{witness}']"])
    assert not witness.exists()


@pytest.mark.parametrize("override", ["abc", "=3", "a..b=3", ".a=3", "a.=3", "", "a", "--steps"])
def test_a_malformed_override_says_how_one_looks(override: str) -> None:
    assert line(apply_overrides, {}, [override]) == (
        f"override {override!r}: must look like key=value, for example training.steps=1000"
    )


def test_overrides_set_values_and_replace_sections() -> None:
    values = {"title": "a", "paper": {"width": 3, "ruled": True}, "shape": "square", "none": None}
    before = repr(values)
    changed = apply_overrides(values, ["paper.width=4", "shape.side=2", "new.key=1", "none.key=*.txt", "title=x=y"])
    assert changed == {
        "title": "x=y",
        "paper": {"width": 4, "ruled": True},
        "shape": {"name": "square", "side": 2},
        "none": {"key": "*.txt"},
        "new": {"key": 1},
    }
    assert repr(values) == before
    assert apply_overrides(values, ["paper.width=4", "paper={}", "paper.ruled=false"])["paper"] == {
        "width": 4,
        "ruled": False,
    }
    assert apply_overrides(values, ["title=1", "title=2"])["title"] == 2


def test_an_override_inside_a_number_is_refused() -> None:
    assert line(apply_overrides, {"a": {"b": 3}}, ["a.b.c=1"]) == "override a.b.c: a.b has no options, it is 3"


words = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t\x85\u2028"), max_size=20)
numberlike = st.from_regex(r"[-+.0-9_eE:xob]{1,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words | numberlike
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | numberlike, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(words | numberlike, plain, max_size=4))
def test_any_plain_data_goes_through_yaml_and_back(values: dict[str, Any]) -> None:
    back = parse_yaml(dump_yaml(values), "")
    assert back == values
    assert repr(back) == repr(values)  # 1, 1.0 and True are equal but not the same


drawings = st.builds(
    Drawing,
    title=words,
    paper=st.builds(Paper, width=st.integers(), color=st.sampled_from(["white", "yellow"]), ruled=st.booleans()),
    shape=st.builds(Square, side=st.floats(1e-30, 1e30))
    | st.builds(Polygon, corners=st.just(3), lengths=st.just(()) | st.tuples(*[st.integers()] * 3)),
)


@given(drawings)
def test_a_config_goes_through_yaml_and_back(drawing: Drawing) -> None:
    back = Drawing.from_yaml(drawing.to_yaml())
    assert back == drawing
    assert hash(back) == hash(drawing)
    assert drawing.to_yaml() == back.to_yaml()


@given(st.permutations(["title=b", "paper.width=4", "paper={ruled: true}", "shape=polygon", "shape.corners=5"]))
def test_the_order_of_overrides_of_different_keys_does_not_matter(overrides: list[str]) -> None:
    assert apply_overrides({"title": "a", "shape": "square"}, overrides) == {
        "title": "b",
        "paper": {"ruled": True, "width": 4},
        "shape": {"name": "polygon", "corners": 5},
    }


def taken_or_refused_in_one_line(override: str) -> None:
    try:
        values = apply_overrides({"title": "a", "paper": {"width": 3}, "shape": "polygon"}, [override])
        Drawing.from_mapping(values, "overrides")
        message = ""
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


@given(st.text(max_size=30) | st.builds("{}={}".format, st.text(max_size=10), st.text(max_size=10)))
def test_any_text_as_an_override_is_taken_or_refused_in_one_line(text: str) -> None:
    taken_or_refused_in_one_line(text)


@given(st.sampled_from(sorted(Drawing.dotted_keys())), plain)
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: object) -> None:
    taken_or_refused_in_one_line(f"{key}={dump_yaml({'v': value})[3:]}")


def test_all_faults_of_a_mapping_are_told_at_once() -> None:
    from zoo.recipe import Recipe

    values = {
        "name": "a",
        "modle": {},
        "model": {"width": 0, "heds": 2, "vocab_size": 257},
        "training": {"steps": -1, "setps": 3},
        "mixer": {"name": "power", "q": 3},
    }
    lines = Recipe.faults_of(values, "a.yaml")
    keys = [line.partition(": ")[2].partition(":")[0] for line in lines]
    assert sorted(keys[:4]) == ["mixer.q", "model.heds", "modle", "training.setps"]
    assert sorted(keys[4:]) == ["model.heads", "model.layers", "model.width", "training.steps"]
    assert all(line.startswith("a.yaml: ") for line in lines)
    assert "modle" in values
    assert (
        Recipe.faults_of(
            Recipe.from_mapping(
                {"name": "a", "model": {"vocab_size": 257, "width": 8, "layers": 1, "heads": 1}}
            ).model_dump(mode="json")
        )
        == []
    )
