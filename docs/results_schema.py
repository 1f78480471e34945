"""Write ``results.schema.json`` and the tables of ``results-schema.md``, from the dataclasses of ``segx.results``."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from segx.results import types
from segx.results.store import SCHEMA_VERSION
from segx.results.types import Results

SCHEMA_FILE, TABLES_FILE = (Path(__file__).with_name(name) for name in ("results.schema.json", "results-schema.md"))
_BEGIN, _END = "<!-- fields: made by docs/results_schema.py -->", "<!-- end of fields -->"

_CONSTANTS = {"None": "null", "True": "true", "False": "false"}
# The first that a field's name ends with gives its unit; a unit in brackets in the docstring goes before.
_UNIT_BY_ENDING = {
    "_bytes_per_s": "bytes/s", "_per_s": "1/s", "_s": "s", "_bytes": "bytes", "_mhz": "MHz", "_px": "px", "_w": "W",
    "_c": "°C", "_pixels": "px", "iou": "0 to 1", "dice": "0 to 1", "flips": "px",
}  # fmt: skip


def results_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``to_json``, with units as ``x-unit``."""
    _, components = msgspec.json.schema_components([Results], ref_template="#/$defs/{name}")
    definitions = {name: _described(getattr(types, name), schema) for name, schema in components.items()}
    whole = definitions.pop("Results")
    version = {"const": SCHEMA_VERSION, "description": "Version of this schema."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:segx:results:{SCHEMA_VERSION}",
        **whole,
        "title": "Results of segx bench",
        "properties": {"schema_version": version, **whole["properties"]},
        "required": ["schema_version", *whole["required"]],
        "$defs": definitions,
    }


def _described(record: type, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Add descriptions and units to msgspec's schema of a dataclass; require every field and allow no others."""
    documentation = documented_fields(record)
    properties = {}
    for name, field in schema["properties"].items():
        meaning, unit = documentation[name]
        plain = {key: value for key, value in field.items() if key != "default"}
        properties[name] = {**plain, "description": meaning, **({"x-unit": unit} if unit else {})}
    return {
        "description": _markdown((inspect.getdoc(record) or "").partition("\n")[0]),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def documented_fields(record: type) -> dict[str, tuple[str, str]]:
    """Return field -> meaning and unit, from the ``Attributes`` section of a dataclass.

    An entry is ``name: meaning``, or ``name (unit): meaning`` where the end of the name does not give the unit.

    Raises:
        KeyError: a field is not described.
    """
    _, _, attributes = (inspect.getdoc(record) or "").partition("Attributes:\n")
    found = {}
    for entry in re.split(r"\n(?=    \S)", attributes.rstrip()):
        head, _, meaning = entry.strip().partition(":")
        name, _, unit = head.rstrip(")").partition(" (")
        by_ending = (known for ending, known in _UNIT_BY_ENDING.items() if name.endswith(ending))
        found[name] = _markdown(meaning), unit or next(by_ending, "")
    return {field.name: found[field.name] for field in dataclasses.fields(record)}


def _markdown(text: str) -> str:
    """Return a docstring's text as one line of Markdown, with JSON's names of Python's constants."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r"\b(None|True|False)\b", lambda name: _CONSTANTS[name[0]], line)


def with_tables(page: str, schema: Mapping[str, Any]) -> str:
    """Return a Markdown page with a table per record between its two marks."""
    parts = ["## The file", _table(schema)]
    for name, record in schema["$defs"].items():
        parts += [f"## {name}", record["description"], _table(record)]
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return "\n\n".join([before + _BEGIN, *parts, _END + after])


def _table(record: Mapping[str, Any]) -> str:
    lines = ["| field | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for name, field in record["properties"].items():
        meaning = field["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_name(field)} | {field.get('x-unit', '')} | {meaning} |")
    return "\n".join(lines)


def _type_name(field: Mapping[str, Any]) -> str:
    """Name a type in words, with links to the tables of other records."""
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type_name(inner) for inner in field["anyOf"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "any")
    inner = field.get("items") or field.get("additionalProperties")
    return f"{kind} of {_type_name(inner)}" if isinstance(inner, dict) and inner else str(kind)


def main() -> None:
    """Write both files."""
    schema = results_schema()
    SCHEMA_FILE.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLES_FILE.write_text(with_tables(TABLES_FILE.read_text(encoding="utf-8"), schema), encoding="utf-8")


if __name__ == "__main__":
    main()
