"""What is said where transformers is missing or too old."""

import importlib
import importlib.metadata

import pytest

import zoo.hf


@pytest.mark.parametrize("found", [None, "4.57.1", "5.23.0"])
def test_an_older_transformers_is_named(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=rf"expected transformers 5\.24 or newer, found {found or 'none'}: pip"):
        importlib.reload(zoo.hf)
    monkeypatch.undo()
    importlib.reload(zoo.hf)
