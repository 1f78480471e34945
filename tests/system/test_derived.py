"""The cache of derived files: reuse, damage, foreign files, and failures that leave nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from segx.errors import OutputError
from segx.export import artifact
from segx.export.artifact import ProofRow, other_pixels, why_no_export
from segx.model.spec import ModelSpec
from segx.results.types import Parity
from segx.system.derived import Manifest, cached, manifest_path, read_manifest, why_without_manifest
from segx.system.files import sha256_of
from tests.mutations import damaged_json, few_or_many, read_all


@dataclass(frozen=True)
class Check:
    passed: int


def make_file(
    path: Path,
    recipe: dict[str, object],
    content: bytes = b"file",
    *,
    force: bool = False,
    why_foreign: Callable[[Path, bool], str] | None = why_no_export,
) -> tuple[Manifest[Check], bool]:
    def make(temporary: Path) -> Check:
        temporary.write_bytes(content)
        return Check(3)

    source = path.with_name("source")
    return cached(path, recipe, make, source=source, proof=Check, why_foreign=why_foreign, force=force)


def rebuilds(path: Path, recipe: dict[str, object], **options: bool) -> bool:
    _, rebuilt = make_file(path, recipe, **options)
    return rebuilt


def test_a_file_is_reused_while_recipe_and_content_are_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.bin"
    manifest, rebuilt = make_file(path, {"of": [1, None]})
    assert rebuilt
    assert make_file(path, {"of": [1, None]}, b"other") == (manifest, False)
    assert path.read_bytes() == b"file"
    assert set(json.loads(manifest_path(path).read_text())) == {
        "schema_version", "created", "artifact_sha256", "recipe", "proof",
    }  # fmt: skip
    assert rebuilds(path, {"of": [2]})
    assert rebuilds(path, {"of": [2]}, force=True)
    path.write_bytes(b"damaged")
    assert read_manifest(path, Check) is None
    assert rebuilds(path, {"of": [2]})
    assert path.read_bytes() == b"file"


@pytest.mark.parametrize(
    "manifest", ["{", "{}", '{"schema_version": 0, "created": "", "artifact_sha256": "", "recipe": {}, "proof": null}']
)
def test_a_damaged_or_foreign_manifest_is_no_manifest(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "file.bin"
    make_file(path, {})
    manifest_path(path).write_text(manifest)
    assert read_manifest(path, Check) is None


def test_a_file_that_segx_did_not_write_is_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for force in (False, True):
        for why_foreign in (why_no_export, why_without_manifest):
            with pytest.raises(OutputError, match="was not written by segx"):
                make_file(mine, {}, force=force, why_foreign=why_foreign)
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]
    with pytest.raises(OutputError, match="is a folder"):
        make_file(tmp_path, {})
    make_file(mine, {}, why_foreign=None)
    assert mine.read_text() == "file"


def test_a_file_in_the_place_of_the_manifest_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "config.json"
    mine.write_text('{"of": "the checkpoint"}')
    with pytest.raises(OutputError, match=r"config\.json exists and was not written by segx"):
        make_file(tmp_path / "config", {})
    assert mine.read_text() == '{"of": "the checkpoint"}'
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_is_not_replaced_by_what_is_made_of_it(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    source = tmp_path / "source"
    make_file(source, {})  # written by segx
    link(source, tmp_path / "link")
    for path in (source, tmp_path / "link", tmp_path / "." / "source"):
        with pytest.raises(OutputError, match="would replace its own source"):
            make_file(path, {"of": "source"}, force=True)


def test_a_model_put_in_the_place_of_a_cached_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    make_file(path, {})
    value, other = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    save(helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="was not written by segx"):
        make_file(path, {})
    assert path.read_bytes() == before


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    make_file(path, {})
    before = sorted(tmp_path.iterdir())

    def fail(temporary: Path) -> Check:
        temporary.write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(path, {"other": 1}, fail, source=tmp_path / "source", proof=Check)
    assert path.read_bytes() == b"file"
    assert sorted(tmp_path.iterdir()) == before


def test_infinities_are_null_in_the_manifest_and_are_read_back(
    tmp_path: Path, make_parity: Callable[..., Parity]
) -> None:
    row = ProofRow(1, 32, 32, make_parity(max_abs_diff=math.inf, mean_abs_diff=math.inf))
    path = tmp_path / "file.bin"

    def make(temporary: Path) -> ProofRow:
        temporary.write_bytes(b"file")
        return row

    cached(path, {}, make, source=tmp_path / "source", proof=ProofRow)
    assert json.loads(manifest_path(path).read_text())["proof"]["parity"]["max_abs_diff"] is None
    manifest = read_manifest(path, ProofRow)
    assert manifest
    assert manifest.proof == row


@few_or_many
def test_a_damaged_manifest_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(artifact, "ARTIFACTS", tmp_path)
    path = tmp_path / "a.onnx"
    path.write_bytes(b"a")
    recipe = {"weights_sha256": "w", "spec": ModelSpec().to_json()}
    whole = {"schema_version": 1, "created": "", "artifact_sha256": sha256_of(path), "recipe": recipe, "proof": None}

    def read(data: bytes) -> None:
        manifest_path(path).write_bytes(data)
        read_manifest(path, object)
        other_pixels("w", ModelSpec())

    read_all(damaged_json(json.dumps(whole).encode(), count), read)
