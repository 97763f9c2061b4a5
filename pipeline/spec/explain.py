"""Pydantic's errors put into words: file, line, field, expected, found."""

import difflib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.spec.errors import Problem
from pipeline.spec.section import FieldPath, InvalidFieldsError
from pipeline.spec.yaml_lines import Document

_EXPECTED = {
    "missing": "a value, for it is required",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a section of key: value lines",
    "model_attributes_type": "a section of key: value lines",
    "dict_type": "a section of key: value lines",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a value, for it is required",
}
_MAX_FOUND = 80


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Problem]:
    """All of a validation error's findings about `document`, one problem a field."""
    problems: dict[FieldPath, Problem] = {}
    for details in error.errors(include_url=False):
        for problem in _problems(details, document, model):
            problems[problem.path] = _merged(problems.get(problem.path), problem)
    return list(problems.values())


def _merged(earlier: Problem | None, later: Problem) -> Problem:
    """One problem for a field of two types (a count or "auto"), which fails once for each."""
    if earlier is None or later.expected in earlier.expected:
        return earlier or later
    expected = f"{earlier.expected} or {later.expected}"
    return replace(earlier, expected=expected, hint=earlier.hint or later.hint)


def _problems(
    details: ErrorDetails, document: Document, model: type[BaseModel]
) -> Iterator[Problem]:
    kind, context = details["type"], details.get("ctx", {})
    path = _written_path(details["loc"], document.value, missing=kind == "missing")
    reason = context.get("error")
    if isinstance(reason, InvalidFieldsError):
        for finding in reason.errors:
            at = path + finding.path
            yield Problem(document.file, document.line(at), at, finding.expected, finding.found)
        return
    limits = {name: f"{v:g}" if isinstance(v, float) else v for name, v in context.items()}
    expected = _EXPECTED.get(kind, details["msg"]).format(**limits)
    found, hint = _show(details["input"]), ""
    if kind == "value_error":
        expected = str(reason)
    elif kind == "missing":
        found = "nothing"
        hint = _suggest(str(path[-1]), _unused_keys(path[:-1], document, model))
    elif kind == "extra_forbidden":
        known = _known_keys(details["loc"][:-1], model)
        expected = f"one of {', '.join(known)}" if known else "no such key"
        found, hint = f"unknown key {_show(path[-1])}", _suggest(str(path[-1]), known)
    elif kind == "union_tag_invalid":
        path = (*path, str(context["discriminator"]).strip("'"))
        found = _show(context["tag"])
        hint = _suggest(context["tag"], _quoted(context["expected_tags"]))
    elif kind == "union_tag_not_found":
        path, found = (*path, str(context["discriminator"]).strip("'")), "nothing"
    elif kind == "literal_error":
        hint = _suggest(str(details["input"]), _quoted(context["expected"]))
    elif kind == "string_type" and isinstance(details["input"], int | float):
        hint = f'as text it is written "{details["input"]}"'
    yield Problem(document.file, document.line(path), path, expected, found, hint)


def _written_path(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> FieldPath:
    """`loc` without the names of union members that pydantic puts in between."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            path.append(part)
            value = value[part]
        elif missing and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Keys that the section at `loc` may have; empty where that cannot be told."""
    candidates = [model]
    for part in loc:
        tagged = [c for c in candidates if _tag(c) == part]
        if tagged:
            candidates = tagged
            continue
        fields = [c.model_fields[part] for c in candidates if part in c.model_fields]
        candidates = [m for f in fields for m in _models_in(f.annotation)]
    return list(candidates[0].model_fields) if len(candidates) == 1 else []


def _unused_keys(path: FieldPath, document: Document, model: type[BaseModel]) -> list[str]:
    """Keys written at `path` that mean nothing there: perhaps a misspelt required one."""
    written = document.value
    for part in path:
        written = written[part]
    known = _known_keys(path, model)
    return [key for key in written if key not in known] if known else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _tag(model: type[BaseModel]) -> str | None:
    """The value of `kind` that marks a member of a union."""
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind and get_args(kind.annotation) else None


def _quoted(text: str) -> list[str]:
    """Names in pydantic's list "'a', 'b' or 'c'"."""
    return text.split("'")[1::2]


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _MAX_FOUND else text[:_MAX_FOUND] + "…"
