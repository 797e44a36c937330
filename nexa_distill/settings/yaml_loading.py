"""Load a YAML file of settings into typed, frozen values.

An unknown key and a value out of range are errors that name the file, the key and the nearest
known name. `extends: FILE` takes every value from FILE (beside the file with this line, or in
`configs/`); the following keys override it. Without that line, missing keys come from the file of
the same kind in `configs/`; with `extends: null` a missing key is an error.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from nexa_distill.errors import InputError, InputMissing, did_you_mean


def refuse_value(problem: str) -> NoReturn:
    """For validators: the error message is `problem`, without a prefix of pydantic's."""
    raise PydanticCustomError("setting", "{problem}", {"problem": problem})


def _check_share(value: float) -> float:
    if value <= 1:
        return value
    instead = f"write {value / 100:.2f}" if value <= 100 else "write a number up to 1.0"
    refuse_value(f"scores are 0..1, {instead}")


Share = Annotated[float, Field(ge=0), AfterValidator(_check_share)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# libyaml's loader is ten times as fast, if PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CONFIGS = Path(__file__).parents[1] / "configs"  # a link to the project's configs/


class Section(BaseModel):
    """A block of settings: no unknown key, no silent conversion, no change after loading."""

    # Name in `configs/` of the file with every value, for a section that is a whole file.
    shipped: ClassVar[str | None] = None
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


def load_yaml(
    path: Path, model: type[S], overrides: Mapping[str, Any] | None = None, preset: Mapping[str, Any] | None = None
) -> S:
    """Read and validate one YAML file; `overrides` (flags) have precedence.

    `preset` replaces values of the shipped file, and is overridden by every other file.

    Raises InputMissing if there is no file, InputError (65) for YAML that does not parse and for an
    unknown, missing or out-of-range key.
    """
    shipped = CONFIGS / model.shipped if model.shipped else None
    values, is_open = _resolve_extends(path, preset=(shipped, preset or {}))
    # Files that are older than a key take its shipped value.
    if is_open and shipped and _misses_keys(values, model):
        values = merge_settings(merge_settings(read_yaml(shipped), preset or {}), values)
    return validate_section(str(path), merge_settings(values, overrides or {}), model)


def _misses_keys(values: dict[str, Any], model: type[Section]) -> bool:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return any(item["type"] == "missing" for item in error.errors())
    return False


def validate_section(source: str, values: dict[str, Any], model: type[S]) -> S:
    """Build the section. Raises InputError (65) naming `source`, the key and the nearest name."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain_errors(source, model, error))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML's mapping with `extends:` resolved. Raises InputMissing or InputError."""
    return _resolve_extends(path)[0]


def _resolve_extends(
    path: Path, extended_by: tuple[Path, ...] = (), preset: tuple[Path | None, Mapping[str, Any]] = (None, {})
) -> tuple[dict[str, Any], bool]:
    """(the mapping, whether its last base has no `extends:` line).

    `preset`: a file, and the values that replace those in it.
    """
    values = _read_mapping(path)
    if preset[0] and path.resolve() == preset[0].resolve():
        values = merge_settings(values, preset[1])
    if "extends" not in values:
        return values, True
    name, chain = values.pop("extends"), (*extended_by, path.resolve())
    if name is None:
        return values, False
    if not isinstance(name, str):
        raise InputError(f"{path}: extends is {name!r}, expected the name of one YAML file")
    base = _find_base(path, name)
    if base.resolve() in chain:
        files = " -> ".join(file.name for file in (*chain, base))
        raise InputError(f"{path}: the files extend each other in a circle: {files}")
    below, is_open = _resolve_extends(base, chain, preset)
    return merge_settings(below, values), is_open


def _find_base(path: Path, name: str) -> Path:
    beside, shipped = path.parent / name, CONFIGS / name
    # A user's distill_config.yaml may extend the shipped file of the same name.
    is_other = beside.is_file() and beside.resolve() != path.resolve()
    return beside if is_other or not shipped.is_file() else shipped


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputMissing(
            f"{path}: no such configuration file (looked in {Path.cwd()}); "
            "run from the project folder or pass --config FILE"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def merge_settings(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`, section by section; a list is replaced as a whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge_settings(below, value) if both and isinstance(below, Mapping) else value
    return merged


def _explain_errors(source: str, model: type[Section], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        match item["type"]:
            case "extra_forbidden":
                keys = _known_keys(model, item["loc"][:-1])
                hint = did_you_mean(str(item["loc"][-1]), keys)
                yield f"{source}: unknown key {where}{hint}; known here: {', '.join(keys)}"
            case "missing":
                yield f"{source}: missing key {where}"
            # A whole section is no help to the user, and an API key must not be printed.
            case _ if isinstance(item["input"], dict) or "key" in str(item["loc"][-1]):
                yield f"{source}: {where}: {item['msg']}"
            case _:
                yield f"{source}: {where} is {item['input']!r}: {item['msg']}{_float_hint(item['input'])}"
    if any(item["type"] == "missing" for item in error.errors()):
        shipped = model.shipped or "the file that ships"
        yield (
            f"{source}: copy the missing keys from configs/{shipped}, or begin the file with "
            f"`extends: {shipped}` to use its values for missing keys"
        )


def _float_hint(value: object) -> str:
    """A hint for numbers such as 2e-5, which YAML 1.1 reads as text without a dot."""
    number = re.fullmatch(r"(-?\d+)([eE][+-]?\d+)", value) if isinstance(value, str) else None
    return f"; write {number[1]}.0{number[2]}" if number else ""


def _known_keys(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`; a step into a dict or list stays in its model."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                model = kind
    return list(model.model_fields)
