"""What a config key means: type, default, unit and text, read from :mod:`inf_nerf.config`, which alone holds them."""

import json
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inf_nerf.config import Config, SweepConfig
from inf_nerf.config_file import known_keys, nearest_key
from inf_nerf.errors import InputError
from inf_nerf.foreign_keys import FOREIGN_KEYS

UNIT = re.compile(r"\s*\[([^\[\]]+)\]$")
NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", Any: "anything"}
BOUNDS = {"ge": "from {:g} on", "gt": "above {:g}", "le": "up to {:g}", "lt": "below {:g}"}  # as pydantic keeps them


@dataclass(frozen=True)
class KeyMeaning:
    """One key, for people."""

    key: str
    type: str
    default: str  # as it would stand in YAML
    unit: str  # "" for plain numbers and all that is no number
    meaning: str


def all_keys() -> list[str]:
    """Every key of a configuration file, those of a sweep's file last."""
    return known_keys(Config) + known_keys(SweepConfig, "sweep.")


def explain(key: str) -> list[KeyMeaning]:
    """The meaning of a key, or of all keys of a section; :class:`InputError` names the nearest known one."""
    known = all_keys()
    chosen = [name for name in known if name == key or name.startswith(f"{key}.")]
    if key in FOREIGN_KEYS:
        reason = FOREIGN_KEYS[key].reason
        raise InputError(
            f"{key!r} is a key of other trainers{f' ({reason})' if reason else ''}; inf-nerf config check FILE says "
            "what becomes of it."
        )
    if not chosen:
        raise InputError(
            f"{key!r} is no config key; did you mean {nearest_key(key, known)!r}? inf-nerf config show lists all."
        )
    return [_meaning(name) for name in chosen]


def _meaning(key: str) -> KeyMeaning:
    field = _field(key)
    text = " ".join((field.description or "").split())
    unit = UNIT.search(text)
    default = "(must be given)" if field.is_required() else as_yaml(field.get_default())
    return KeyMeaning(
        key, type_name(_annotation(field)), default, unit[1] if unit else "", text[: unit.start()] if unit else text
    )


def as_yaml(value: Any) -> str:
    """A value as it would stand after ``--set key=``."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return value if isinstance(value, str) else json.dumps(value)


def type_name(annotation: Any) -> str:
    """The type of a key in words, with its bounds: ``whole number from 1 on``, ``number above 0 or null``."""
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Annotated:
        bounds = [
            text.format(getattr(each, bound))
            for field in arguments[1:]
            for each in getattr(field, "metadata", [field])
            for bound, text in BOUNDS.items()
            if hasattr(each, bound)
        ]
        return " ".join([type_name(arguments[0]), *bounds])
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_name, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return NAMES[annotation]


def _annotation(field: FieldInfo) -> Any:
    """The annotation with the bounds that pydantic took out of it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _field(key: str) -> FieldInfo:
    section: type[BaseModel] = SweepConfig if key.startswith("sweep.") else Config
    *sections, name = key.removeprefix("sweep.").split(".")
    for each in sections:
        kind = section.model_fields[each].annotation
        assert isinstance(kind, type) and issubclass(kind, BaseModel)
        section = kind
    return section.model_fields[name]
