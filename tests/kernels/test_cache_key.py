"""Compiled code on disk is found by the code of the ops: a change of theirs makes it anew."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from zoo.kernels.cache_key import key_compiled_code_by_sources, source_tag
from zoo.kernels.linear_cross_entropy import linear_cross_entropy

ROOT = Path(__file__).parent.parent.parent


def test_every_file_counts_by_name_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    file = tmp_path / "op" / "chunked.py"
    tags = {source_tag(tmp_path)}
    for content in ("", "a = 1\n", "a = 2\n"):
        file.write_text(content)
        tags |= {source_tag(tmp_path)}
    file.rename(tmp_path / "op" / "other.py")
    tags |= {source_tag(tmp_path)}
    assert len(tags) == 5


def test_whoever_defines_an_op_sees_to_the_key() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "torch.library.custom_op(" in text or 'Library("zoo"' in text:
            assert "key_compiled_code_by_sources()" in text, path


def test_the_users_own_tag_stays() -> None:
    with torch.compiler.config.patch(cache_key_tag="mine"):
        key_compiled_code_by_sources.__wrapped__()
        assert torch.compiler.config.cache_key_tag == f"mine+{source_tag(ROOT / 'kernels')}"


@pytest.mark.slow
def test_compiled_code_is_not_found_after_the_ops_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert source_tag(ROOT / "kernels") in torch.compiler.config.cache_key_tag
    x, weight, targets = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3), torch.tensor([0, 1, 2, 3])

    def found() -> bool:
        torch.compiler.reset()
        before = counters["aot_autograd"]["autograd_cache_hit"]
        torch.compile(lambda x: linear_cross_entropy(x, weight, targets))(x).backward()
        return counters["aot_autograd"]["autograd_cache_hit"] > before

    assert not found()
    assert found()
    with torch.compiler.config.patch(cache_key_tag="zoo-0123456789abcdef"):
        assert not found()
