"""Triton's interpreter without what it does again at each call of a function: a third of a small kernel's time.

Each call inside a kernel looks through all of the language for what to replace, which has been replaced by then, and
each operation makes the table of dtypes anew.
"""

from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["spare_repetition"]


def spare_repetition() -> None:
    """Make it so for this process. What is computed does not change."""
    replace, find_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    dtypes: dict[Any, np.dtype] = {}

    def replace_once(function: FunctionType) -> Any:
        languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return interpreter._LangPatchScope()  # there is nothing to undo
        return replace(function)

    def find_dtype_once(dtype: Any) -> np.dtype:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        if isinstance(scalar, tl.pointer_type):
            return find_dtype(scalar)
        if scalar not in dtypes:
            dtypes[scalar] = find_dtype(scalar)
        return dtypes[scalar]

    interpreter._patch_lang, interpreter._get_np_dtype = replace_once, find_dtype_once
