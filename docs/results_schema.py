"""Write ``results.schema.json`` and the tables of ``results-schema.md``, from the dataclasses of ``segx.results``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segx.results.store import results_schema

SCHEMA_FILE, TABLES_FILE = (Path(__file__).with_name(name) for name in ("results.schema.json", "results-schema.md"))
_BEGIN, _END = "<!-- fields: made by docs/results_schema.py -->", "<!-- end of fields -->"


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
