"""Code of its own for every model, since the compiler keeps its graphs, and counts recompiles, by code."""

from types import FunctionType
from typing import Any, Self

from torch import nn

__all__ = ["CompiledByItself"]


class CompiledByItself(nn.Module):
    """A module each instance of which has its own copy of the methods that are compiled.

    Otherwise the graphs of all instances stand in one list, of which the compiler takes eight: a fourth model that is
    trained and evaluated in one process would be refused. Copying and pickling see the class alone.
    """

    compiled_methods: tuple[str, ...] = ("forward",)
    """The methods that a caller may compile."""

    _shared: "type[CompiledByItself] | None" = None

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        # A class and not attributes of the instance: those would hold it in a circle, and its memory with it.
        shared = cls._shared or cls
        own = {name: _copy(getattr(shared, name)) for name in shared.compiled_methods}
        names = {"__module__": shared.__module__, "__qualname__": shared.__qualname__, "__doc__": shared.__doc__}
        return super().__new__(type(shared.__name__, (shared,), names | own | {"_shared": shared}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        return _make, (self._shared or type(self),), *parts[2:]


def _make(kind: type[CompiledByItself]) -> CompiledByItself:
    return kind.__new__(kind)


def _copy(function: FunctionType) -> FunctionType:
    code = function.__code__.replace()
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    copy.__doc__, copy.__module__, copy.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return copy
