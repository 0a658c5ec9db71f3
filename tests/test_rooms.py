"""The house from the bottom up: no import goes up, none goes round, and no mixer or op knows another."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "kernels",
    "errors",
    "limits",
    "reading",
    "version",
    "config",
    "drop_in",
    "report",
    "blocks",
    "mixers",
    "tasks",
    "recipe",
    "data",
    "models",
    "states",
    "builder",
    "export",
    "accounting",
    "budget",
    "generation",
    "compiling",
    "training",
    "caching",
    "hf",
    "serving",
    "study",
    "bench",
    "tuning",
    "cli",
    "__main__",
)
"""Folders and files of `zoo/`, each of which imports only itself and what stands before it."""

BUILT_ON = {("delta", "power"), ("rwkv7", "delta"), ("rwkv7", "power")}
"""Ops that are made of another's parts: the delta rule on a power state reads and writes it as power attention does,
and RWKV-7's chunks are affine maps of the state as the delta rule's are, taken one after the other by the same kernels.
"""


class Import(NamedTuple):
    """One imported module, with the line that names it. The file is named by its module."""

    by: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.by}, line {self.line}, imports {self.module}"


def read_sources() -> dict[str, str]:
    """Return the text of every file of `zoo/`, the kernels among them, by the name of its module."""
    sources = {}
    for folder, prefix in ((ROOT / "zoo", "zoo"), (ROOT / "kernels", "zoo.kernels")):
        for path in folder.rglob("*.py"):  # which does not follow the links from zoo/ to kernels/ and recipes/
            parts = (prefix, *path.relative_to(folder).with_suffix("").parts)
            sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def read_imports(sources: Mapping[str, str]) -> Iterator[Import]:
    """Yield every import there is: at the top of a file, inside a function, or for type checkers alone."""
    for by, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (Import(by, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{by}, line {node.lineno}: a relative import"
                for alias in node.names:  # `from zoo.data import shards` imports a file, `... import Corpus` a name
                    inner = f"{node.module}.{alias.name}"
                    yield Import(by, node.lineno, inner if inner in sources else str(node.module))


def room_of(module: str) -> int | None:
    """Return the place of a module's room, the package itself above all; None for what is not of the house."""
    package, _, rest = module.partition(".")
    if package != "zoo":
        return None
    return ROOMS.index(rest.partition(".")[0]) if rest else len(ROOMS)


def climbing(imports: list[Import]) -> list[str]:
    return [str(one) for one in imports if (room_of(one.module) or 0) > (room_of(one.by) or 0)]


def circle(imports: list[Import]) -> list[str]:
    """Return the modules of one circle of files, or an empty list."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        graph.setdefault(one.by, set()).add(one.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return list(read_imports(read_sources()))


def test_every_room_has_its_place() -> None:
    assert {module.split(".")[1] for module in read_sources() if module != "zoo"} == set(ROOMS)


def test_no_import_goes_up(imports: list[Import]) -> None:
    assert climbing(imports) == []


def test_no_import_goes_round(imports: list[Import]) -> None:
    assert circle(imports) == []


def test_no_mixer_knows_another(imports: list[Import]) -> None:
    mixers = [one for one in imports if one.by.startswith("zoo.mixers.") and one.module.startswith("zoo.mixers")]
    assert [str(one) for one in mixers] == []


def test_no_op_knows_another(imports: list[Import]) -> None:
    ops = [path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py")]
    found = []
    for own in ops:
        others = tuple(f"zoo.kernels.{op}" for op in ops if op != own and (own, op) not in BUILT_ON)
        own = f"zoo.kernels.{own}"
        found += [str(one) for one in imports if one.by.startswith(own) and one.module.startswith(others)]
    assert found == []


def test_what_is_against_the_order_is_found() -> None:
    house = {
        "zoo.blocks.one": "def run():\n    from zoo.mixers import two\n",
        "zoo.mixers.two": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo.blocks.one import run\n",
        "zoo.kernels.three": "import torch\nimport zoo\nimport zoo.errors\n",
    }
    found = list(read_imports(house))
    assert climbing(found) == [
        "zoo.blocks.one, line 2, imports zoo.mixers.two",
        "zoo.kernels.three, line 2, imports zoo",
        "zoo.kernels.three, line 3, imports zoo.errors",
    ]
    assert set(circle(found)) == {"zoo.blocks.one", "zoo.mixers.two"}


def test_nothing_imports_the_top_level_folders() -> None:
    for folder in ("zoo", "kernels", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found = re.search(r"^\s*(from|import) (kernels|recipes)\b", path.read_text(), flags=re.MULTILINE)
            assert found is None, f"{path}: {found and found[0]}"


def test_importing_the_zoo_is_light() -> None:
    heavy = ("torch", "matplotlib", "rich", "pydantic", "transformers")
    code = f"import sys, zoo; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
