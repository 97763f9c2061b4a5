"""YAML 1.2 scalars with the line of every field; nothing in a file can run code."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.spec.errors import Problem, SpecError
from pipeline.spec.section import FieldPath

_TAG = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 1e-5 is text, `no` is false and 1:30 is ninety.

    This loader resolves plain scalars by the core schema of YAML 1.2 instead.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})\Z"), _first)


@dataclass
class Document:
    """Plain values of a YAML file, and the line (from 1) where each field stands."""

    file: str
    value: Any = None
    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: FieldPath) -> int:
        """Line of `path`, or of the nearest thing around it that is written in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def complain(self, path: FieldPath, line: int, expected: str, found: str) -> None:
        """Notes a problem; reading goes on, so that all of them are reported at once."""
        self.problems.append(Problem(self.file, line, path, expected, found))


def read_yaml(text: str, file: str) -> Document:
    """Reads one YAML document of plain values.

    Raises:
        SpecError: bad syntax, duplicate keys, aliases, tags, or keys that are not text.
    """
    document = Document(file)
    try:
        node = yaml.compose(text, _CoreLoader)
        if node is not None:
            document.value = _plain(node, (), document, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        document.complain((), line, "YAML", error.problem or "a syntax error")
    except yaml.YAMLError as error:
        document.complain((), 1, "YAML", str(error).splitlines()[0])
    except RecursionError:
        document.complain((), 1, "YAML of a few levels", "very deep nesting")
    if document.problems:
        raise SpecError(document.problems)
    return document


def _plain(node: yaml.Node, path: FieldPath, document: Document, seen: set[int]) -> Any:
    """The plain value of a node; lines and problems are noted in `document`."""
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if id(node) in seen:
        document.complain(path, line, "values written out", "a YAML alias (*name)")
        return None
    seen.add(id(node))
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, document, seen)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        items = enumerate(node.value)
        return [_plain(item, (*path, index), document, seen) for index, item in items]
    if isinstance(node, yaml.ScalarNode):
        try:
            return _scalar(kind, node.value)
        except ValueError:
            pass
    document.complain(path, line, "a plain value", f"YAML tag {node.tag}")
    return None


def _mapping(
    node: yaml.MappingNode, path: FieldPath, document: Document, seen: set[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            found = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a collection"
            document.complain(path, line, "keys that are names", str(found))
            continue
        key = key_node.value
        if key in result:
            expected = f"every key once (it stands on line {first_line[key]} already)"
            document.complain((*path, key), line, expected, "it again")
            continue
        first_line[key] = line
        document.lines[(*path, key)] = line
        result[key] = _plain(value_node, (*path, key), document, seen)
    return result


def _scalar(kind: str, text: str) -> Any:
    """Value of a scalar; ValueError for a tag that plain values do not have."""
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if kind == "float":
        return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))
    raise ValueError(kind)
