from __future__ import annotations

import copy
import pickle

import pytest

from segx import errors
from segx.errors import InferenceError, OutOfMemory, SegxError

EXIT_CODES = {
    "SegxError": 1,
    "UsageError": 2,
    "CheckpointError": 1,
    "ImageError": 1,
    "OutputError": 1,
    "ArtifactError": 1,
    "ExportError": 1,
    "RuntimeUnavailable": 1,
    "InferenceError": 1,
    "OutOfMemory": 1,
    "ResultsError": 1,
    "NotComparable": 1,
    "GateNotMet": 3,
}


def _kinds() -> dict[str, type[SegxError]]:
    return {k: v for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, SegxError)}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {name: kind.exit_code for name, kind in _kinds().items()} == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_the_tree_in_the_docstring_names_every_class_with_its_code(name: str) -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if name in line.split()]
    assert len(lines) == 1
    assert str(EXIT_CODES[name]) in lines[0].split()


def test_out_of_memory_is_an_inference_error() -> None:
    assert issubclass(OutOfMemory, InferenceError)


@pytest.mark.parametrize("kind", _kinds().values())
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_class_message_and_hint(kind: type[SegxError], protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(kind("what is wrong", hint="what to do"), protocol))
    assert type(twin) is kind
    assert (twin.message, twin.hint, str(twin), twin.args) == (
        "what is wrong",
        "what to do",
        "what is wrong",
        ("what is wrong",),
    )


def test_pickling_keeps_attributes_and_notes() -> None:
    error = SegxError("a", hint="b")
    error.add_note("seen in cell 3")
    twin = pickle.loads(pickle.dumps(error))
    assert twin.__notes__ == ["seen in cell 3"]
    assert copy.copy(error).hint == "b"


def test_a_hint_is_required() -> None:
    with pytest.raises(TypeError, match="hint"):
        SegxError("no hint")  # type: ignore[call-arg]
