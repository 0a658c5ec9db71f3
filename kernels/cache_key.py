"""The compiler's cache on disk, kept from calling an op's backward pass as it was written before a change.

Entries hold graphs in which an op is a name and its arguments. The op's own code, which decides what its backward pass
finds, is in no key of torch's; `torch.compiler.config.cache_key_tag` puts it there.
"""

import hashlib
from functools import cache
from pathlib import Path

import torch.compiler.config

__all__ = ["key_compiled_code_by_sources", "source_tag"]


def source_tag(folder: Path) -> str:
    """Return a hash of the code in a folder, by the names of its files and their bytes."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        found.update(content)
    return f"zoo-{found.hexdigest()[:16]}"


@cache
def key_compiled_code_by_sources() -> None:
    """Have what is compiled from now on be found on disk by the code of the ops too; whoever defines an op calls this.

    A tag of the user's own stays in front.
    """
    own = torch.compiler.config.cache_key_tag
    torch.compiler.config.cache_key_tag = "+".join(filter(None, (own, source_tag(Path(__file__).parent))))
