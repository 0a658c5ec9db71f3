"""Which GPUs and versions of Triton the kernels are for, and what is said on others."""

import pytest

from zoo.errors import InputError
from zoo.kernels import triton_support
from zoo.kernels.power.supported import check_architecture


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"])
def test_gpus_that_the_kernels_are_for(name: str) -> None:
    check_architecture(name)


@pytest.mark.parametrize("name", ["sm_75", "sm_70", "gfx90a", "gfx1100"])
def test_other_gpus_are_told_which_are(name: str) -> None:
    with pytest.raises(InputError, match=rf"compute capability 8.0 .* gfx942 on, this GPU is {name}; impl='chunked'"):
        check_architecture(name)


@pytest.mark.parametrize(("version", "refused"), [("3.5.1", True), ("2.1.0", True), ("3.6.0", False), ("4.0.0", False)])
def test_versions_of_triton(version: str, refused: bool) -> None:
    expected = f"needs Triton 3.6 or newer, {version} is installed" if refused else ""
    assert triton_support._refusal(version) == expected
