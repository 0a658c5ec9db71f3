"""Strict configuration: frozen pydantic models read from safe YAML; errors are one line that names the key at fault."""

import copy
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, cast, get_args

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from zoo.errors import ConfigError, nearest
from zoo.reading import open_regular

__all__ = ["Config", "Pair", "apply_overrides", "dump_yaml", "flatten", "load_yaml", "override_list", "parse_yaml"]


_DEEPEST = 32
"""Levels of a document; recipes and studies have four."""

_LONGEST = 2**18
"""Characters of a document, which is a second or two of reading."""

_TOO_LONG = f"too long for a recipe or a study, over {_LONGEST:,} characters"


class Config(pydantic.BaseModel):
    """Base of every config: frozen, without unknown keys, without coercion (`"12"`, `12.0` and `True` are no integers).

    Sequences are declared as tuples; a list is taken for one, since that is what YAML has. Anything invalid raises
    `zoo.errors.ConfigError`, from Python (`TrainingConfig(steps=-1)`) as from a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {_one_line(error, values)}") from None

    # Tells pydantic that this __init__ adds no fields: nested configs are then validated without it, so that an error
    # reaches the outermost config and can name the whole dotted key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_mapping(cls, values: object, source: str = "") -> Self:
        """Validate a plain mapping. `source` (a file's name, "overrides") starts the line of any `ConfigError`."""
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{source}: {_one_line(error, values)}" if source else _one_line(error, values)) from None

    @classmethod
    def faults_of(cls, values: object, source: str = "") -> list[str]:
        """Return everything that is wrong with a mapping, each in a line as `from_mapping` says the first of them.

        What stands beside or below an unknown key is looked at too.
        """
        rest, lines = copy.deepcopy(values), list[str]()
        start = f"{source}: " if source else ""
        while True:
            try:
                cls.model_validate(rest)
                return lines
            except pydantic.ValidationError as error:
                details = error.errors(include_url=False)
                unknown = [detail for detail in details if detail["type"] == "unknown_key"]
                lines += [f"{start}{line}" for detail in unknown or details for line in _describe_all(detail, rest)]
                places = [[*_dotted_key(detail["loc"], rest), detail["ctx"]["key"]] for detail in unknown]
                if not places or not all(_drop(rest, place) for place in places):
                    return lines

    @classmethod
    def from_yaml(cls, text: str, source: str = "YAML text") -> Self:
        """Parse and validate what `to_yaml` wrote, or a person."""
        return cls.from_mapping(parse_yaml(text, source), source)

    def to_yaml(self) -> str:
        """Write every field, defaults included, such that `from_yaml` gives an equal config."""
        return dump_yaml(_name_first(self.model_dump(mode="json")))

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated like any other."""
        return type(self).from_mapping(dict(self) | changes, type(self).__name__)

    @classmethod
    def dotted_keys(cls) -> Iterator[str]:
        """Yield every dotted key that this config understands, those of nested configs included."""
        for name, field in cls.model_fields.items():
            yield name
            for nested in _configs_in(field.annotation):
                yield from (f"{name}.{key}" for key in nested.dotted_keys())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                context = {"key": _printable(key), "hint": cls._hint_for(str(key))}
                raise PydanticCustomError("unknown_key", "unknown key{hint}", context)
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @classmethod
    def _hint_for(cls, key: str) -> str:
        """Suggest a nested key of exactly this name, else the field spelt most like it, else list the fields."""
        nested = [candidate for candidate in cls.dotted_keys() if candidate.endswith(f".{key}")]
        if nested:
            return f" (did you mean {nested[0]!r}?)"
        return nearest(key, cls.model_fields) or f"; the keys are {', '.join(cls.model_fields)}"


def _check_pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        given = list(value) if isinstance(value, list | tuple) else value
        raise ValueError(f"must be two numbers, got {reprlib.repr(given)}")
    return value


Pair = Annotated[tuple[float, float], BeforeValidator(_check_pair)]
"""Two numbers, of which any other number is refused as a whole and not by its position."""


def _configs_in(annotation: object) -> Iterator[type[Config]]:
    """Yield the config classes that a field's type mentions, inside unions, tuples and Annotated too."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _configs_in(argument)


def _name_first(values: Any) -> Any:
    """Put `name` before the other keys of a mapping, nested ones too: it says what they mean."""
    if not isinstance(values, dict):
        return values
    return {key: _name_first(values[key]) for key in sorted(values, key=lambda key: key != "name")}


def _one_line(error: pydantic.ValidationError, values: object) -> str:
    lines = [line for detail in error.errors(include_url=False) for line in _describe_all(detail, values)]
    more = len(lines) - 1
    return lines[0] + (f" (and {more} more error{'s' if more > 1 else ''})" if more else "")


def _describe_all(detail: ErrorDetails, values: object) -> list[str]:
    """Render one pydantic error, which a validator of a whole config may have made of several, as lines."""
    return _describe(detail, values).splitlines()


def _drop(values: Any, place: list[str]) -> bool:
    """Take a key out of nested mappings, and return whether it was there."""
    *above, last = place
    for part in above:
        values = values.get(part) if isinstance(values, Mapping) else None
    found = [key for key in values if _printable(key) == last] if isinstance(values, dict) else []
    for key in found:
        del values[key]
    return bool(found)


def _describe(detail: ErrorDetails, values: object) -> str:
    """Render one pydantic error as ``dotted.key: what it must be, got what it was (did you mean ...?)``."""
    kind, context = detail["type"], detail.get("ctx", {})
    location = list(_dotted_key(detail["loc"], values))
    if kind == "unknown_key":
        return f"{'.'.join([*location, context['key']])}: {detail['msg'].removesuffix('.')}"
    message = re.sub(r"^(Input|String|Value|Tuple|Dictionary) should", "must", detail["msg"])
    given = f", got {reprlib.repr(detail['input'])}"
    if kind == "missing":
        message, given = "missing", ""
    elif kind == "value_error":
        message, given = str(context["error"]), ""
    elif kind == "union_tag_not_found":
        location.append(context["discriminator"].strip("'"))
        message, given = "missing", ""
    elif kind == "union_tag_invalid":
        location.append(context["discriminator"].strip("'"))
        message, given = f"must be one of {context['expected_tags']}", f", got {context['tag']!r}"
        given += nearest(context["tag"], re.findall(r"'([^']*)'", context["expected_tags"]))
    elif kind == "literal_error":
        given += nearest(str(detail["input"]), re.findall(r"'([^']*)'", context["expected"]))
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a mapping of keys to values"
    elif kind == "tuple_type":
        message = "must be a list"
    key = ".".join(location)
    return f"{key}: {message}{given}" if key else f"{message}{given}"


def _dotted_key(location: tuple[int | str, ...], values: object) -> Iterator[str]:
    """Drop from pydantic's location the names of union members, which are no keys of the input."""
    for part in location:
        if isinstance(values, Mapping) and part not in values and part in values.values():
            continue
        if values == part:
            continue
        yield _printable(part)
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]


def _printable(key: object) -> str:
    """Write a key such that it stays on one line."""
    text = str(key)
    return text if text.isprintable() else repr(text)


class _Loader(yaml.SafeLoader):
    """Safe YAML as people expect it: no duplicate keys, and only what looks like a number, boolean or null is one.

    YAML 1.1 reads `1e-3` as text, `off` as false, `1:30` as 90, `010` as 8, `2001-01-01` as a date; not so here.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the library's own hook; filled below)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, with which a short text stands for endless data, and tags, whose values need no such care."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise self._refusal(f"aliases are not taken, got '*{event.anchor}'", event)
        tag = event.tag
        if tag is not None:
            name = tag.replace("tag:yaml.org,2002:", "!!")
            raise self._refusal(f"tags are not taken, got {reprlib.repr(name)}", event)
        if self._depth == _DEEPEST:
            raise self._refusal(f"nested too deeply, over {_DEEPEST} levels", event)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    @staticmethod
    def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(None, None, problem, cast("yaml.Mark", event.start_mark))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The loader's counterpart: quotes what either the loader or plain YAML 1.1 would not read back as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document: plain data, of bounded length and depth, without aliases and tags.

    Raises `ConfigError` with `source` and the line at fault.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{source}: {_TOO_LONG}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises `ConfigError` when it is missing, unreadable or something else."""
    try:
        with open_regular(path) as file:
            content = file.read(4 * _LONGEST + 1)  # at most four bytes make a character
        if len(content) > 4 * _LONGEST:
            raise ConfigError(f"{path}: {_TOO_LONG}")
        text = content.decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    mapping = parse_yaml(text, str(path))
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys to values, got {reprlib.repr(mapping)}")
    return mapping


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain data (mappings, lists, text, numbers, booleans, None) as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a nested mapping holds, by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", option) for inner, option in flatten(value))
        else:
            yield key, value


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a nested mapping with ``key.of.option=value`` overrides set.

    Values are YAML (`3`, `1e-3`, `true`, `[1, 2]`); one that starts with `*` is text, so that globs need no quotes.
    A whole section is replaced before options inside it are set, whatever the order given: `mixer.p=2 mixer=power` is
    `mixer=power mixer.p=2`. Where an option is set inside a plain string, the string stands for `{name: string}`.

    Raises `ConfigError` for an override without `=`, with an empty key, or inside something that has no options.
    Whether the keys exist is for the config that validates the result to say.
    """
    result = copy.deepcopy(dict(values))
    for path, value in sorted(map(_parse_override, override_list(overrides)), key=lambda override: len(override[0])):
        section = result
        for depth, name in enumerate(path[:-1]):
            inner = section.get(name)
            if isinstance(inner, str):
                inner = {"name": inner}
            if inner is not None and not isinstance(inner, dict):
                owner = ".".join(path[: depth + 1])
                raise ConfigError(f"override {'.'.join(path)}: {owner} has no options, it is {reprlib.repr(inner)}")
            section[name] = section = {} if inner is None else inner
        section[path[-1]] = value
    return result


def override_list(overrides: Iterable[str]) -> list[str]:
    """Return overrides as a list.

    Raises:
        ConfigError: they are one text, whose characters would each count as an override, or not all of them are texts.
    """
    given = [] if isinstance(overrides, str) else list(overrides)
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in given):
        raise ConfigError(
            f"overrides: must be a list of texts such as ['training.steps=1000'], got {reprlib.repr(overrides)}"
        )
    return given


def _parse_override(override: str) -> tuple[list[str], Any]:
    where = f"override {reprlib.repr(override)}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path) or not key.isprintable():
        raise ConfigError(f"{where}: must look like key=value, for example training.steps=1000")
    return path, text if text.startswith("*") else parse_yaml(text, where)
