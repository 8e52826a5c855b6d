"""Config files and ``key=value`` overrides: read, merged, and checked against sections of keys.

Whatever cannot be used is one sentence that names the file, the key, and the nearest known one.  What the keys are,
:mod:`inf_nerf.config` says.
"""

import difflib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from inf_nerf.errors import InputError
from inf_nerf.foreign_keys import FOREIGN_KEYS, FOREIGN_SECTIONS, translate
from inf_nerf.places import Place

AnySection = TypeVar("AnySection", bound=BaseModel)

log = logging.getLogger(__name__)


def set_keys(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply ``key=value`` overrides to nested ``values``."""
    for override in overrides:
        merge(values, in_own_keys(overridden(override), f"--set {override}"))


def overridden(override: str) -> dict[str, Any]:
    """What ``key=value`` says, as nested values; :class:`InputError` where it is nothing of the kind."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r} is not of the form key=value, for example --set train.steps=2000.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r} has a value that is not valid YAML; quote it.") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def in_own_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Nested ``values`` with keys of ours for those of other trainers, of which a warning says what became of them."""
    ours, outcomes = translate(values, source)
    if outcomes:
        said = [f"{source} has {len(outcomes)} key{'s' * (len(outcomes) > 1)} of other trainers"]
        for kinds, text in ((("none",), "have no effect here"), (("loses",), "lose to others that set the same")):
            if keys := [outcome.key for outcome in outcomes if outcome.kind in kinds]:
                said.append(f"{', '.join(keys)} {text}")
        log.warning("%s; inf-nerf config check gives the reasons.", "; ".join(said))
    return ours


def validated(values: Mapping[str, Any], section: type[AnySection], source: str, prefix: str = "") -> AnySection:
    """``values`` as a section whose keys have ``prefix``; :class:`InputError` names ``source`` and a bad key."""
    for problem in problems_in(values, section, source, prefix):
        raise InputError(problem)
    return section.model_validate(_numbers(values, section))


def problems_in(values: Mapping[str, Any], section: type[BaseModel], source: str, prefix: str = "") -> list[str]:
    """A sentence for every key of nested ``values`` that ``section`` cannot take; unknown keys first."""
    problems = list(_unknown(values, section, source, prefix, known_keys(section, prefix)))
    try:
        section.model_validate(_numbers(values, section))
    except ValidationError as error:
        for each in error.errors():
            key = ".".join(str(part) for part in each["loc"])
            key = prefix + key if key else key
            found = f" (found {each['input']!r})" if key and not isinstance(each["input"], Mapping) else ""
            message = each["msg"].removeprefix("Value error, ")
            where = f"key {key!r}" if key else "the configuration"
            problems.append(f"In {source}, {where} is not usable: {message}{found}; correct its value.")
    return problems


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key in declaration order."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def nearest_key(key: str, known: list[str]) -> str:
    """The known key that is spelled most like ``key``."""
    return (difflib.get_close_matches(key, known, n=1, cutoff=0.3) or known[:1])[0]


def read_yaml(path: Place, sections: Collection[str]) -> Mapping[str, Any]:
    """The mapping in a configuration file, unchecked, with an empty one of ``sections`` as a mapping of nothing;
    :class:`InputError` where there is none."""
    if not path.is_file():
        raise InputError(f"The config file {path} does not exist; name one such as configs/laptop.yaml.")
    try:
        content = yaml.load(path.read_text(), _OnceEach)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({str(error).splitlines()[0]}); correct the file.") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a mapping of config sections; see configs/.")
    return {key: {} if value is None and key in sections else value for key, value in content.items()}


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    said = f"the key {key.value!r} stands twice, in line {key.start_mark.line + 1} again"
                    raise yaml.constructor.ConstructorError(problem=said)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Put the values of nested ``update`` in their places in ``into``."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _unknown(
    values: Mapping[str, Any], section: type[BaseModel], source: str, prefix: str, known: list[str]
) -> Iterator[str]:
    """A sentence for every key that is not there, and every section that is no mapping."""
    for key, value in values.items():
        field = section.model_fields.get(key)
        dotted = f"{prefix}{key}"
        if field is None:
            below = value
            while isinstance(below, Mapping) and below:  # an unknown section is named with its first key
                key, below = next(iter(below.items()))
                dotted = f"{dotted}.{key}"
            near = nearest_key(dotted, list(FOREIGN_KEYS) if dotted.split(".")[0] in FOREIGN_SECTIONS else known)
            yield f"In {source}, the key {dotted!r} is unknown; did you mean {near!r}?"
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if isinstance(value, Mapping):
                yield from _unknown(value, kind, source, f"{dotted}.", known)
            else:
                yield f"In {source}, {dotted!r} is a section of keys, but a {type(value).__name__} was found."


def _numbers(values: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """The known keys of ``values``, text such as ``1e-2`` turned into numbers where the key is numeric (YAML 1.1 wants
    ``1.0e-2``)."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in section.model_fields:
            continue
        kind = section.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if not isinstance(value, Mapping):
                continue
            value = _numbers(value, kind)
        elif "str" not in str(kind) and "Path" not in str(kind):
            value = [_number(item) for item in value] if isinstance(value, list) else _number(value)
            if isinstance(value, bool) and kind is not bool:
                value = str(value).lower()  # pydantic would take it for 1 or 0
        result[key] = value
    return result


def _number(value: object) -> object:
    """The number that a text is, or the value as it was."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every value in nested ``values`` with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
