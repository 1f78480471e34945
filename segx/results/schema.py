"""The JSON Schema of ``results.json`` and the tables that document it, made of the dataclasses and their docstrings.

``python -m segx.results.schema``, in a clone, writes ``results.schema.json`` beside this file and the tables in
``docs/results-schema.md``; a test fails where they are not of the current dataclasses.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from segx.results.store import SCHEMA_VERSION
from segx.results.types import Results

SCHEMA_FILE = Path(__file__).parent / "results.schema.json"
DOCS_FILE = Path(__file__).parents[2] / "docs" / "results-schema.md"
_BEGIN, _END = "<!-- fields: made by python -m segx.results.schema -->", "<!-- end of fields -->"

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}

_CONSTANTS = {"None": "null", "True": "true", "False": "false"}

# What a number is in, by the end of its field's name; the first that fits.
_UNIT_BY_ENDING = {
    "_bytes_per_s": "bytes/s", "_per_s": "1/s", "_s": "s", "_bytes": "bytes", "_mhz": "MHz", "_px": "px", "_w": "W",
    "_c": "°C", "_pixels": "px", "iou": "0 to 1", "dice": "0 to 1", "flips": "px",
}  # fmt: skip
# … and of fields whose name does not tell, by ``Class.field`` or ``Class.*``.
_UNITS = {
    "BenchOptions.max_flips": "share of pixels",
    "ModelSpec.height": "px",
    "ModelSpec.width": "px",
    "ModelSpec.threshold": "probability",
    "ModelSpec.mean": "share of full brightness",
    "ModelSpec.std": "share of full brightness",
    "NoiseProbe.max_abs_diff": "logits",
    "Cell.stages": "s per image",
    "Wall.*": "s",
    "Machine.cpu_quota": "processors",
    "Machine.load_average_1min": "tasks",
    "Round.load": "tasks",
    "Results.load_after": "tasks",
    "Parity.pixels": "px",
    "Parity.max_abs_diff": "logits",
    "Parity.mean_abs_diff": "logits",
    "Parity.logit_range": "logits",
    "Parity.noise_band": "logits",
    "ImageParity.max_diff": "share of logit_range",
    "ImageParity.mean_diff": "share of logit_range",
    "TruthScore.loss": "IoU",
    "TruthScore.loss_low": "IoU",
    "TruthScore.loss_high": "IoU",
}
# Numbers that can be infinite or unknown, which JSON writes as null.
_MAY_BE_NULL = frozenset({
    "Machine.load_average_1min", "NoiseProbe.max_abs_diff", "Parity.max_abs_diff", "Parity.mean_abs_diff",
    "ImageParity.max_diff", "ImageParity.mean_diff",
})  # fmt: skip


def results_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what ``to_json`` writes, with a unit under ``x-unit`` where there is one."""
    definitions: dict[str, Any] = {}
    whole = _of_class(Results, definitions)
    version = {"const": SCHEMA_VERSION, "description": "Of this schema; older files are brought up to it on reading."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:segx:results:{SCHEMA_VERSION}",
        "title": "Results of segx bench",
        **whole,
        "properties": {"schema_version": version, **whole["properties"]},
        "required": ["schema_version", *whole["required"]],
        "$defs": definitions,
    }


def _of_class(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A dataclass: all of its fields are there, and no others."""
    hints = typing.get_type_hints(kind)
    said = described(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        place = f"{kind.__name__}.{field.name}"
        schema = _of_type(hints[field.name], definitions)
        if place in _MAY_BE_NULL:
            schema = _or_null(schema)
        unit = _unit(place, hints[field.name])
        properties[field.name] = {**schema, "description": said[field.name], **({"x-unit": unit} if unit else {})}
    return {
        "description": _in_json((inspect.getdoc(kind) or "").partition("\n")[0]),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _of_type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # holds its place, before those that stand within it
            definitions[hint.__name__] = _of_class(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _of_generic(typing.get_origin(hint), typing.get_args(hint), definitions)


def _of_generic(origin: Any, arguments: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in {types.UnionType, typing.Union}:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _or_null(_of_type(inner, definitions))
    if origin is tuple:
        return {"type": "array", "items": _of_type(arguments[0], definitions)}
    if origin in {dict, collections.abc.Mapping}:
        return {"type": "object", "additionalProperties": _of_type(arguments[1], definitions)}
    raise TypeError(f"no JSON Schema for {origin}")


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def described(kind: type) -> dict[str, str]:
    """Field -> what the ``Attributes`` of the class's docstring say of it.

    Raises:
        KeyError: they say nothing of some field.
    """
    _, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found = {}
    for entry in re.split(r"\n(?=    \S)", attributes.rstrip()):
        name, _, text = entry.strip().partition(":")
        found[name] = _in_json(text)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def _in_json(text: str) -> str:
    """A docstring's words as one line of Markdown, with JSON's names for Python's constants."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r"\b(None|True|False)\b", lambda name: _CONSTANTS[name[0]], line)


def _unit(place: str, hint: Any) -> str:
    """What the numbers of a field are in; empty for what is no number or is counted."""
    kind, _, name = place.partition(".")
    numbers = {int, float} & {hint, *typing.get_args(hint)}
    if not numbers:
        return ""
    by_ending = (unit for ending, unit in _UNIT_BY_ENDING.items() if name.endswith(ending))
    unit = _UNITS.get(place) or _UNITS.get(f"{kind}.*") or next(by_ending, "")
    if not unit and float in numbers:
        raise KeyError(f"{place} has no unit: name it by its end, or in _UNITS")
    return unit


def tables(schema: dict[str, Any]) -> str:
    """Markdown: a table per class, in the order in which they are first used."""
    parts = ["## The whole", _table(schema)]
    for name, definition in schema["$defs"].items():
        parts += [f"## {name}", definition["description"], _table(definition)]
    return "\n\n".join(parts)


def _table(definition: dict[str, Any]) -> str:
    lines = ["| field | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for name, field in definition["properties"].items():
        meaning = field["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_name(field)} | {field.get('x-unit', '')} | {meaning} |")
    return "\n".join(lines)


def _type_name(field: dict[str, Any]) -> str:
    """In words, with links to the tables of other classes."""
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type_name(inner) for inner in field["anyOf"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    names = [field["type"]] if isinstance(field.get("type"), str) else field.get("type", ["any"])
    inner = field.get("items") or field.get("additionalProperties")
    within = f" of {_type_name(inner)}" if isinstance(inner, dict) else ""
    return " or ".join(f"{name}{within}" if name in {"array", "object"} else name for name in names)


def documented(text: str, schema: dict[str, Any]) -> str:
    """The page with the tables in their place."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{tables(schema)}\n\n{_END}{after}"


def _write() -> None:
    schema = results_schema()
    SCHEMA_FILE.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    DOCS_FILE.write_text(documented(DOCS_FILE.read_text(encoding="utf-8"), schema), encoding="utf-8")


if __name__ == "__main__":
    _write()
