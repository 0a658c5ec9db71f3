"""The Python examples in the README and in docs/ run as they stand, and what the pages list is what there is."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from zoo.blocks.heads import HeadConfig
from zoo.mixers import mixers

ROOT = Path(__file__).parent.parent
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


def documented_options(heading: str) -> dict[str, str]:
    """Return the options and defaults in the table under a heading of docs/mixers.md."""
    _, _, rest = (ROOT / "docs" / "mixers.md").read_text().partition(f"\n### {heading}\n")
    return dict(
        re.findall(r"^\| `(\w+)` \| `(.+?)` \| .+ \|$", re.split(r"^#", rest, flags=re.MULTILINE)[0], re.MULTILINE)
    )


@pytest.mark.parametrize("name", mixers)
def test_options_are_listed_with_their_defaults(name: str) -> None:
    config = mixers[name].config
    shared = documented_options("Heads") if issubclass(config, HeadConfig) else {}
    values = config().model_dump(mode="json", exclude={"name"})
    assert shared | documented_options(name) == {key: json.dumps(value) for key, value in values.items()}
