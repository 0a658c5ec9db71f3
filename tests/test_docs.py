"""The Python examples in the README and in docs/ run as they stand, and what the pages list is what there is."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from zoo.blocks.heads import HeadConfig
from zoo.blocks.rotary_scaling import ScalingConfig, scalings
from zoo.config import Config
from zoo.mixers import mixers
from zoo.recipe import DataConfig, DecoderConfig, EvaluationConfig, TrainingConfig
from zoo.recipe.training import ParallelConfig
from zoo.tasks import tasks

ROOT = Path(__file__).parent.parent
SECTIONS = {
    "model": DecoderConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "training.parallel": ParallelConfig,
    "evaluation": EvaluationConfig,
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page_" + re.sub(r"\W", "_", page.stem))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # the compiler looks up the classes defined there
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def documented_options(page: str, heading: str) -> dict[str, list[str]]:
    """Return the options in the table under a heading, each with its columns but for the last, which is prose."""
    _, _, rest = (ROOT / "docs" / page).read_text().partition(f"\n### {heading}\n")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| .+ \|$", re.split(r"^#", rest, flags=re.MULTILINE)[0], re.MULTILINE)
    return {name: columns.split(" | ") for name, columns in rows}


def type_of(annotation: object) -> str:
    """Write a field's type as the tables do: what YAML calls it, or its choices."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return type_of(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "mapping"
    if get_origin(annotation) is tuple:
        return f"list of {type_of(get_args(annotation)[0])}s"
    if members := get_args(annotation):
        return " or ".join(dict.fromkeys(type_of(member) for member in members))
    return {int: "integer", float: "number", bool: "boolean", str: "text", type(None): "`null`"}[annotation]


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{field.default}`" if isinstance(field.default, str) else f"`{json.dumps(field.default)}`"


@pytest.mark.parametrize("name", mixers)
def test_options_are_listed_with_their_defaults(name: str) -> None:
    config = mixers[name].config
    shared = documented_options("mixers.md", "Heads") if issubclass(config, HeadConfig) else {}
    values = config().model_dump(mode="json", exclude={"name"})
    documented = shared | documented_options("mixers.md", name)
    assert documented == {key: [f"`{json.dumps(value)}`"] for key, value in values.items()}


@pytest.mark.parametrize(("section", "config"), SECTIONS.items())
def test_sections_of_a_recipe_are_listed_with_types_and_defaults(section: str, config: type[Config]) -> None:
    fields = {
        name: [type_of(field.annotation), default_of(field)]
        for name, field in config.model_fields.items()
        if f"{section}.{name}" not in SECTIONS
    }
    documented = documented_options("recipes.md", section)
    assert documented == fields
    assert list(documented) == list(fields)


@pytest.mark.parametrize("kind", scalings)
def test_options_of_a_rotary_scaling_are_listed_with_types_and_defaults(kind: str) -> None:
    config: type[ScalingConfig] = scalings[kind]
    fields = {name: [type_of(field.annotation), default_of(field)] for name, field in config.model_fields.items()}
    assert fields.pop("kind") == [f"`{kind}`", f"`{kind}`"]
    documented = documented_options("recipes.md", kind)
    assert documented == fields
    assert list(documented) == list(fields)


@pytest.mark.parametrize("kind", tasks)
def test_options_of_a_task_are_listed_with_types_and_defaults(kind: str) -> None:
    fields = {name: [type_of(field.annotation), default_of(field)] for name, field in tasks[kind].model_fields.items()}
    assert fields.pop("kind") == [f"`{kind}`", f"`{kind}`"]
    documented = documented_options("tasks.md", kind)
    assert documented == fields
    assert list(documented) == list(fields)
