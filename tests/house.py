"""Counts that say how well the code reads; `python tests/house.py` prints them, and `test_house.py` holds limits."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIRECTIVES = ("# fmt:", "# noqa", "# type:")  # comments to tools, which tell a reader nothing
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def nodes(folder: str) -> Iterator[tuple[str, ast.AST]]:
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            yield str(path.relative_to(ROOT)), node


def is_kernel(function: ast.FunctionDef) -> bool:
    jitted = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
    return jitted and function.name.endswith("_kernel")


def wide_functions(folder: str, more_than: int = 8) -> list[str]:
    """Functions with more parameters than that, by name or by place, `self` and kernels aside."""
    found = []
    for path, node in nodes(folder):
        if isinstance(node, ast.FunctionDef) and not is_kernel(node):
            parameters = [x.arg for x in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(parameters) - (parameters[:1] in (["self"], ["cls"]))
            if count > more_than:
                found.append(f"{path}:{node.lineno}: {node.name} has {count} parameters")
    return found


def calls_by_place(folder: str, more_than: int = 8) -> list[str]:
    """Calls that pass more arguments by place than that (a starred one is one), launches (`f[grid](...)`) aside."""
    return [
        f"{path}:{node.lineno}: {ast.unparse(node.func)} gets {len(node.args)} arguments by place"
        for path, node in nodes(folder)
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Subscript) and len(node.args) > more_than
    ]


def docstring_lines(source: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def comments_per_100_lines(folder: str) -> float:
    """Lines with a comment to a reader, on 100 lines with code; docstrings are neither."""
    comments = code = 0
    for path in modules(folder):
        source, coded = path.read_text(), set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                comments += not token.string.startswith(DIRECTIVES)
            elif token.type not in LAYOUT:
                coded.update(range(token.start[0], token.end[0] + 1))
        code += len(coded - docstring_lines(source))
    return 100 * comments / code


def lines(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def product() -> list[Path]:
    """The Python that a wheel holds, and the recipes."""
    return [*modules("zoo"), *modules("kernels"), *sorted((ROOT / "recipes").rglob("*.yaml"))]


def counts() -> dict[str, float]:
    return {
        "functions of more than 8 parameters in kernels": len(wide_functions("kernels")),
        "calls with 9 or more arguments by place in kernels": len(calls_by_place("kernels")),
        "comments on 100 lines of code in kernels/power/triton/hopper": comments_per_100_lines(
            "kernels/power/triton/hopper"
        ),
        "files of zoo/bench": len(modules("zoo/bench")),
        "lines of zoo/bench": lines(modules("zoo/bench")),
    }


if __name__ == "__main__":
    for what, count in counts().items():
        print(f"{count:9,.1f}  {what}" if isinstance(count, float) else f"{count:7,}    {what}")
    print(f"{lines(product()):7,}    lines of zoo, kernels and recipes")
    print(*wide_functions("kernels"), *calls_by_place("kernels"), sep="\n")
