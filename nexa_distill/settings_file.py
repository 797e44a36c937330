"""A YAML file of settings becomes typed, frozen values.

Every key must stand in the YAML: a missing key and an unknown key are errors that name the file,
the key and the nearest known name. `extends: FILE` at the top of a YAML file takes every value
from FILE (relative to the file that says it) and overrides only what stands below.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from nexa_distill.errors import InputError, InputMissing, did_you_mean


def _share(value: float) -> float:
    if value <= 1:
        return value
    instead = f"write {value / 100:.2f}" if value <= 100 else "write a number up to 1.0"
    raise PydanticCustomError("share", "scores are 0..1, {instead}", {"instead": instead})


Share = Annotated[float, Field(ge=0), AfterValidator(_share)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A block of settings: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


def load_yaml(path: Path, model: type[S], overrides: Mapping[str, Any] | None = None) -> S:
    """Read and validate one YAML file; `overrides` are flags, laid over it.

    Raises InputMissing when there is no file, InputError (65) for YAML that does not parse and for
    an unknown, missing or out-of-range key.
    """
    return validated(str(path), merge(read_yaml(path), overrides or {}), model)


def validated(source: str, values: dict[str, Any], model: type[S]) -> S:
    """The typed section. Raises InputError (65) naming `source`, the key and the nearest name."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain(source, model, error))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML's mapping with `extends:` resolved."""
    if not path.is_file():
        raise InputMissing(
            f"{path}: no such configuration file (looked in {Path.cwd()}); "
            "run from the project folder or pass --config FILE"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    base = values.pop("extends", None)
    return merge(read_yaml(path.parent / base), values) if base else values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid over it, section by section; a list is replaced as a whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge(below, value) if both and isinstance(below, Mapping) else value
    return merged


def _explain(source: str, model: type[Section], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        match item["type"]:
            case "extra_forbidden":
                known = _known_keys(model, item["loc"][:-1])
                hint = did_you_mean(str(item["loc"][-1]), known)
                yield f"{source}: unknown key {where}{hint}; known here: {', '.join(known)}"
            case "missing":
                yield f"{source}: missing key {where}; copy it from the file that ships in configs/"
            case _:
                yield f"{source}: {where} is {item['input']!r}: {item['msg']}{_dot(item['input'])}"


def _dot(value: object) -> str:
    """YAML 1.1 reads 2e-5, without a dot, as text."""
    number = re.fullmatch(r"(-?\d+)([eE][+-]?\d+)", value) if isinstance(value, str) else None
    return f"; write {number[1]}.0{number[2]}" if number else ""


def _known_keys(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`; a step into a dict or list changes no model."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                model = kind
    return list(model.model_fields)
