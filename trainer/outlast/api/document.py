"""Reading one object from YAML, as the API server would read it.

Rules. (1) `1e-3` is a number (PyYAML alone takes it for a string), `3.0` is 3 (so kubectl writes it in JSON), a date is
a string. (2) A key that stands twice is an error, not a silent choice. (3) Every error says where: file, line and
column.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from outlast.api.base import LARGEST_EXACT
from outlast.api.errors import FieldError, SpecError, show


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with rules 1 and 2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {show(key)} stands twice in one object; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> float:
        value: float = self.construct_yaml_float(node)
        return int(value) if value.is_integer() and abs(value) <= LARGEST_EXACT else value


_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+
         |[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)
         |[-+]?\.(?:inf|Inf|INF)
         |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_document(source: str | Path, kind: str) -> dict[str, Any]:
    """The one object of that kind in a file or a text. Raises `SpecError`.

    A string with a line break or a brace is text, any other a file's name. Objects of other kinds beside it (a
    ConfigMap, say) are passed over.
    """
    if isinstance(source, str) and ("\n" in source or "{" in source):
        return _choose(_parse(source, "text"), kind, "text")
    path = Path(source)
    return _choose(_parse(_read(path), str(path)), kind, str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        fact = "no such file; give the path of a TrainingJob in YAML"
    except IsADirectoryError:
        fact = "is a directory; give the path of a TrainingJob in YAML"
    except UnicodeDecodeError as error:
        fact = f"is not UTF-8 text (byte {error.start}); give the path of a TrainingJob in YAML"
    except OSError as error:
        fact = f"cannot be read: {error.strerror}"
    raise SpecError([FieldError(str(path), None, fact)])


def _parse(text: str, where: str) -> list[Any]:
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError([FieldError(f"{where}{place}", None, f"not valid YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise SpecError([FieldError(where, None, f"not valid YAML: {error}")]) from None


def _choose(documents: list[Any], kind: str, where: str) -> dict[str, Any]:
    """The document to use; one that stands alone is used whatever its kind, for its errors say more."""
    fitting = [d for d in documents if isinstance(d, dict) and d.get("kind") == kind]
    chosen = fitting if len(documents) != 1 else documents
    if len(chosen) != 1:
        fact = "is empty" if not documents else f"holds {len(fitting)} objects of kind {kind}"
        raise SpecError([FieldError(where, None, f"{fact}; give exactly one {kind}")])
    if not isinstance(chosen[0], dict):
        raise SpecError([FieldError(where, chosen[0], f"{show(chosen[0])} is not an object; give one {kind}")])
    return chosen[0]
