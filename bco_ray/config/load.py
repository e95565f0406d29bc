"""Reading a spec from YAML, with overrides, and errors that name the key, the file and the nearest right key."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bco_ray.config.spec import DataSpec, JobSpec
from bco_ray.errors import SpecError

_UNION_MEMBER = re.compile(
    r"^(constrained-\w+|literal\[.*\]|dict\[.*\]|tuple\[.*\]|LoraSpec|FieldMap|float|int|str|function-.*)$"
)


def load_spec(path: str | Path, overrides: Iterable[str] = ()) -> JobSpec:
    """The spec in a YAML file, with `a.b=value` overrides applied. Raises SpecError."""
    path = Path(path) if isinstance(path, str) else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such spec file. docs/spec.md has one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot read the spec: {error}.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: a spec is a YAML mapping with name, model, data, ...; found {type(values).__name__}.")
    return parse_spec(apply_overrides(values, overrides), where=str(path))


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=value` (value in YAML) set. Raises SpecError on a malformed override."""
    result: dict[str, Any] = _deep_copy(values)
    for override in overrides:
        key, separator, raw = override.partition("=")
        if not separator or not key:
            raise SpecError(f"--set {override}: write it as section.key=value, for example training.seed=1.")
        _set(result, key.split("."), _yaml_value(raw, override), override)
    return result


def parse_spec(values: dict[str, Any], *, where: str) -> JobSpec:
    """Validate a mapping. Raises SpecError with one line per problem; `where` names the source."""
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        by_key = {_location(problem): problem for problem in reversed(error.errors())}  # of a union's the first
        deepest = [key for key in reversed(by_key) if not any(key == other[: len(key)] != other for other in by_key)]
        problems = "\n".join(f"  {_explain(key, by_key[key])}" for key in deepest)
        raise SpecError(f"{where}: this spec cannot be used:\n{problems}", ".".join(deepest[0]) or None) from None


def parse_data(values: dict[str, Any], overrides: Iterable[str]) -> DataSpec:
    """A spec's data section alone, for commands that need no model. Raises SpecError."""
    whole = apply_overrides({"data": values}, overrides)
    unused = [key for key in whole if key != "data"]
    if unused:
        raise SpecError(f"--set {unused[0]}: only fields of data mean something here, for example data.{unused[0]}=...")
    some_job = {"name": "log", "model": {"base": "none"}, **whole}
    return parse_spec(some_job, where="the command line").data


def dump_spec(spec: JobSpec) -> str:
    """The spec as YAML text, every field written out, in the order of the schema."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _yaml_value(raw: str, override: str) -> Any:
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not valid YAML: {error}") from None


def _deep_copy(value: Any) -> Any:
    return {k: _deep_copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _set(target: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = target.setdefault(key, {})
        if not isinstance(child, dict):
            raise SpecError(f"--set {override}: {key} is a value, not a section.")
        target = child
    target[keys[-1]] = value


def _location(problem: ErrorDetails) -> tuple[str, ...]:
    """The key's path without pydantic's names for the members of a union (`constrained-float`, `literal['auto']`)."""
    return tuple(str(part) for part in problem["loc"] if not _UNION_MEMBER.match(str(part)))


def _explain(location: tuple[str, ...], problem: ErrorDetails) -> str:
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_nearest(location)}"
    if problem["type"] == "missing":
        return f"missing key {key}"
    return f"{key or 'spec'}: {problem['msg']} (got {problem['input']!r})"


def _nearest(location: tuple[str, ...]) -> str:
    known = _keys_at(JobSpec, location[:-1])
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*location[:-1], close[0]])}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _keys_at(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The field names of the section that `path` leads to; empty if it is no section."""
    for key in path:
        if key not in model.model_fields:
            continue  # pydantic names the union member (LoraSpec) as a step of its own
        section = _section(model.model_fields[key].annotation)
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The BaseModel inside an annotation such as `LoraSpec | None`."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next((s for s in map(_section, typing.get_args(annotation)) if s), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
