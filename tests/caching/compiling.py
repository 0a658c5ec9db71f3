"""Compiles one graph for the CPU and one kernel of Triton's for a GPU that is not here: a process of a test's own.

`save FILE` tries what is refused first and then saves; `run` says what was compiled anew. Both print JSON.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch._inductor.config
import triton
import triton.language as tl
from torch._dynamo.utils import counters
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoo.caching import save_cache
from zoo.errors import InputError

# A compiler of C++ takes seconds a file: none to try what the processor can do, and no headers.
torch._inductor.config.cpp.simdlen = 1
torch._inductor.config.cpp.vec_isa_ok = True
torch._inductor.config.cpp_cache_precompile_headers = False
HITS: list[bool] = []


@triton.jit
def double_kernel(x, count):
    places = tl.arange(0, 16)
    tl.store(x + places, tl.load(x + places, places < count) * 2, places < count)


def compile_both() -> None:
    torch.compile(lambda x: (x.sin() + 1).sum(-1), fullgraph=True)(torch.ones(4, 4))
    triton.knobs.compilation.listener = lambda **facts: HITS.append(facts["cache_hit"])
    source = ASTSource(double_kernel, {"x": "*fp32", "count": "i32"})
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert kernel.asm["cubin"]


def fail() -> None:
    raise InputError("this failed")


def refusal(path: Path, run: Callable[[], None]) -> str:
    try:
        save_cache(path, run, torch.device("cpu"))
    except InputError as error:
        return str(error)
    return "nothing"


def save(path: Path) -> dict[str, object]:
    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target) == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    path.write_text("what was there")
    refused = {"failed": refusal(path, fail), "nothing": refusal(path, lambda: None)}
    kept = path.read_text()
    variables = [os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")]
    entries = save_cache(path, compile_both, torch.device("cpu"))
    assert [os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")] == variables
    whole = path.read_bytes()
    refused["again"] = refusal(path, compile_both)
    nothing_yet = patch("torch.compiler.save_cache_artifacts", side_effect=[None, None])
    with nothing_yet, patch("zoo.report.files.os.replace", full):
        refused["full"] = refusal(path, keep_a_file)
    beside = [found.name for found in path.parent.iterdir()]
    return {"refused": refused, "kept": kept, "entries": entries, "same": path.read_bytes() == whole, "beside": beside}


def keep_a_file() -> None:
    folder = Path(os.environ["TRITON_CACHE_DIR"], "key")
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text("{}")


def run() -> dict[str, object]:
    compile_both()
    return {"graphs": dict(counters["inductor"]), "kernels": HITS}


if __name__ == "__main__":
    print(json.dumps(save(Path(sys.argv[2])) if sys.argv[1] == "save" else run()))
