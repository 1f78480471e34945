"""Read and write ``results.json``."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import msgspec

from segx.errors import OutputError, ResultsError, UsageError, first_line
from segx.results.types import BenchOptions, Results
from segx.runtimes import runtime_info
from segx.system.files import write_text

SCHEMA_VERSION = 1

_RECENT, _MOST_RECENT = Path("artifacts", "benches.json"), 50

_RUN_AGAIN = "run the bench again"
_GIVE_RESULTS = "give a folder or a results.json that `segx bench` wrote"


def to_json(results: Results) -> str:
    """Return results as JSON: the schema version first, then one line per field and per cell.

    JSON has no infinity and no NaN; both are written as null.
    """
    values = msgspec.to_builtins(results, enc_hook=_plain)
    cells = ",\n".join(_json(cell) for cell in values.pop("cells"))
    fields = "".join(f"{json.dumps(name)}: {_json(value)},\n" for name, value in values.items())
    return f'{{"schema_version": {SCHEMA_VERSION},\n{fields}"cells": [\n{cells}\n]}}\n'


def _plain(value: Any) -> str | int | float:
    """Convert a subclass of a plain type, such as ``torch.__version__``, or a NumPy number, which msgspec refuses."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be recorded")


def _json(value: Any) -> str:
    # Not msgspec's own encoder: it refuses file names that are not UTF-8.
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def remember_bench(folder: Path) -> None:
    """Keep the folder of a bench outside of ``artifacts`` in ``artifacts/benches.json``, for ``recent_benches``."""
    if folder.absolute().parent == _RECENT.parent.absolute():
        return
    folders = [path for path in recent_benches() if path != folder.absolute()]
    recent = [str(path) for path in (*folders, folder.absolute())][-_MOST_RECENT:]
    with contextlib.suppress(OutputError):  # a bench can do without
        write_text(_RECENT, json.dumps(recent, indent=1) + "\n")


def recent_benches() -> list[Path]:
    """Return the folders of recent benches that were started in this working directory, the newest last."""
    try:
        return [Path(folder) for folder in json.loads(_RECENT.read_bytes())]
    except (OSError, ValueError, RecursionError, TypeError):
        return []


def load_results(path: Path | str) -> Results:
    """Read results from a file, or from ``results.json`` in a folder.

    Raises:
        ResultsError: the file is missing, is not JSON, has an unknown schema version, or a field is missing, unknown or
            of a wrong type or value; the message names the file and the JSON path of the field.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    values = _read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("schema_version"), int | str):
        raise ResultsError(f"{file} is not a segx results file: it has no schema_version", hint=_GIVE_RESULTS)
    if (version := values.pop("schema_version")) != SCHEMA_VERSION:
        raise ResultsError(
            f"{file} has schema version {version}; this version of segx reads {SCHEMA_VERSION}",
            hint=f"read it with the version of segx that wrote it, or {_RUN_AGAIN}",
        )
    try:
        results = msgspec.convert(values, Results)
        if unknown := _unknown_field(values, msgspec.to_builtins(results), "$"):
            raise msgspec.ValidationError(f"Unknown field - at `{unknown}`")
        _refuse_contradictions(results)
    except msgspec.ValidationError as error:
        problem, *place = str(error).rsplit(" - at ", 1)  # msgspec names no place for the whole
        problem = problem[:1].lower() + problem[1:]
        where = place[0].strip("`") if place else "$"
        raise ResultsError(f"{file} is not valid at {where}: {problem}", hint=_RUN_AGAIN) from error
    except UsageError as error:  # the model spec checks its own values
        raise ResultsError(f"{file} is not valid at $.model.spec: {error}", hint=_RUN_AGAIN) from error
    except UnicodeEncodeError as error:
        raise ResultsError(f"{file} holds text that is not Unicode: {error}", hint=_RUN_AGAIN) from error
    return results


def recordable(options: BenchOptions) -> BenchOptions:
    """Return options as they are read again from results, without NumPy's numbers.

    Raises:
        UsageError: a value is none that ``BenchOptions`` may hold, so that the results could not be read.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(options, enc_hook=_plain), BenchOptions)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.partition("[")[0].strip("`")
        hint = "see the fields of BenchOptions in docs/results-schema.md"
        if expected := re.match(r"Expected `(int|float)[^`]*`(?: ([<>]=?) (\S+))?", problem):
            kind = {"int": "a whole number", "float": "a number"}[expected[1]]
            limit = {"<=": " of at most ", ">=": " of at least ", ">": " above ", "<": " below "}.get(expected[2], "")
            hint = f"give {kind}{limit}{expected[3] or ''}"
        raise UsageError(f"{name} cannot be {getattr(options, name, problem)}", hint=hint) from error
    except TypeError as error:
        raise UsageError(f"an option has a wrong type: {first_line(error)}", hint="pass plain values") from error


def _read_json(file: Path) -> Any:
    if file.exists() and not file.is_file():
        raise ResultsError(f"{file} cannot be read: it is not a regular file", hint=_GIVE_RESULTS)
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise ResultsError(f"{file} does not exist", hint=_GIVE_RESULTS) from error
    except OSError as error:
        raise ResultsError(f"{file} cannot be read: {error.strerror or error}", hint=_GIVE_RESULTS) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{file} is not JSON: {first_line(error)}", hint=_GIVE_RESULTS) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _refuse_contradictions(results: Results) -> None:
    """Raise ``msgspec.ValidationError`` for values that others rule out, with the JSON path of the first."""
    try:
        dt.datetime.fromisoformat(results.created)
    except ValueError as error:
        raise msgspec.ValidationError(f"{results.created!r} is not a date - at `$.created`") from error
    for i, cell in enumerate(results.cells):
        place = f"$.cells[{i}]"
        try:
            runtime_info(cell.runtime)
        except UsageError as error:
            raise msgspec.ValidationError(f"{error.message} - at `{place}.runtime`") from error
        if cell.measured and cell.batch_size not in results.options.batch_sizes:
            raise msgspec.ValidationError(f"{cell.batch_size} is not in options.batch_sizes - at `{place}.batch_size`")
        if cell.rounds and sum(turn.runs for turn in cell.rounds) != len(cell.samples_s):
            raise msgspec.ValidationError(f"The runs do not add up to the number of samples_s - at `{place}.rounds`")


def _unknown_field(given: Any, read: Any, place: str) -> str:
    """Return the JSON path of the first value that was not read; empty if there is none.

    msgspec ignores unknown fields of dataclasses: its option to refuse them is only for its own structs.
    """
    pairs: list[tuple[Any, Any, str]] = []
    if isinstance(given, dict):
        if unknown := next((name for name in given if name not in read), None):
            return f"{place}.{unknown}"
        pairs = [(value, read[name], f"{place}.{name}") for name, value in given.items()]
    elif isinstance(given, list):
        pairs = [(value, read[i], f"{place}[{i}]") for i, value in enumerate(given)]
    return next(filter(None, (_unknown_field(*pair) for pair in pairs)), "")
