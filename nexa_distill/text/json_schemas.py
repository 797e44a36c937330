"""The JSON schemas that answers of some task types must satisfy.

Reads `collection.response_schemas` (task type -> path of a JSON schema file). A request of such a
task carries its schema as `response_format`, which is part of its key, and the answer's text is
validated against it afterwards. An answer that does not satisfy it is flagged, not requested again.

Source of the format: structured outputs of the OpenAI chat completions API; vLLM, SGLang, Ollama
and OpenRouter read the same field. A schema is JSON Schema 2020-12 unless `$schema` names another
dialect. Formats ("date", "email") are not checked; a `$ref` to a file or an address is refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from nexa_distill.errors import InputError, InputMissing

NAME_LENGTH = 64  # of a schema in a request; letters, digits, _ and -
PairsHook = Callable[[list[tuple[str, Any]]], object]


@dataclass(frozen=True)
class ResponseSchemas:
    """By task type: the schema and its validator, compiled once."""

    schemas: Mapping[str, Mapping[str, Any]]
    validators: Mapping[str, Validator]

    def request_options(self, task: str) -> dict[str, Any]:
        if task not in self.schemas:
            return {}
        name = re.sub("[^A-Za-z0-9_-]", "_", task)[:NAME_LENGTH]
        schema = {"name": name, "schema": self.schemas[task], "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def is_satisfied(self, task: str, text: str) -> bool:
        validator = self.validators.get(task)
        if validator is None:
            return True
        try:
            return bool(validator.is_valid(parse_json(text)))
        except (ValueError, ArithmeticError, RecursionError):  # endless numbers or nesting
            return False


def parse_json(text: str, pairs_hook: PairsHook | None = None) -> object:
    """Parse a text that is one JSON value. Raises ValueError, also for NaN and Infinity.

    `pairs_hook`: makes the value of each object from its (key, value) pairs.
    """
    try:
        value: object = json.loads(text, parse_constant=_reject_constant, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def load_schemas(files: Mapping[str, str]) -> ResponseSchemas:
    """Read the schema of each task type.

    Raises InputMissing (66) for an absent file, InputError (65) naming file and place for a file
    that is not a JSON schema.
    """
    return compile_schemas({task: _load_schema(task, Path(path)) for task, path in files.items()})


def compile_schemas(schemas: Mapping[str, dict[str, Any]]) -> ResponseSchemas:
    """Compile schemas that are already validated."""
    return ResponseSchemas(schemas, {task: _build_validator(s) for task, s in schemas.items()})


def _load_schema(task: str, path: Path) -> dict[str, Any]:
    where = f"{path} (collection.response_schemas.{task})"
    if not path.is_file():
        raise InputMissing(f"{where}: no such file; expected a JSON schema")
    try:
        schema = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(schema).__name__}")
    try:
        _check_schema(schema)
    except ValueError as error:
        raise InputError(f"{where}: not a JSON schema: {error}") from None
    return schema


def _check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError: what is wrong, and where in the schema."""
    dialect = schema.get("$schema", Draft202012Validator.META_SCHEMA["$id"])
    kind = validator_for({"$schema": dialect}, default=None) if isinstance(dialect, str) else None
    if kind is None:
        raise ValueError(f"$.$schema is {dialect!r}, which is not known")
    try:
        kind.check_schema(schema)
        for reference in _unresolved_references(schema):
            raise ValueError(f"$ref {reference!r} points to nothing in this file")
        # A $ref that leads back to itself only shows when something is validated.
        _build_validator(schema).is_valid({})
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    except RecursionError:
        raise ValueError("a $ref leads back to itself") from None


def _build_validator(schema: Mapping[str, Any]) -> Validator:
    # An empty registry fetches nothing; by default jsonschema follows a $ref into the network.
    validator: Validator = validator_for(schema, Draft202012Validator)(schema, registry=Registry())
    return validator


def _unresolved_references(schema: dict[str, Any]) -> Iterator[str]:
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    pending = [(root, Registry().resolver_with_root(root))]
    while pending:
        resource, outer = pending.pop()
        resolver, contents = outer.in_subresource(resource), resource.contents
        named = contents if isinstance(contents, Mapping) else {}
        for reference in filter(None, map(named.get, ("$ref", "$dynamicRef"))):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                yield reference
        pending += [(part, resolver) for part in resource.subresources()]


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
