"""The shape of the repository and of what is shipped."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import segx
from segx.web import PACKAGE_FILES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["export", "runtimes", "bench"])
def test_links_at_the_top_are_relative_and_point_into_the_package(name: str) -> None:
    assert (ROOT / name).readlink() == Path("segx") / name
    assert (ROOT / name / "__init__.py").is_file()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    source = tmp_path / "source"
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = listing.splitlines()
    for name in tracked:
        if name.startswith("weights/"):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)

    def build() -> tuple[set[str], str]:
        command = ["uv", "build", "--wheel", "--out-dir", str(tmp_path), str(source)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        (wheel,) = tmp_path.glob("*.whl")
        return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}, done.stderr

    package = {name for name in tracked if name.startswith("segx/")}
    inside, said = build()
    assert inside == package
    assert "npm ci --prefix segx/web" in said
    loaded = {f"segx/web/node_modules/{name}/{file}" for name, files in PACKAGE_FILES.items() for file in files}
    for name in loaded | {"segx/web/node_modules/onnxruntime-web/README.md", "segx/web/node_modules/other/index.js"}:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    inside, said = build()
    assert inside == package | loaded
    assert "npm ci" not in said


def test_everything_public_can_be_imported() -> None:
    for name in segx.__all__:
        assert getattr(segx, name) is not None
    assert set(segx._HOMES) == set(segx.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = segx.nonsense  # type: ignore[attr-defined]


def test_benchmark_is_a_function_whatever_was_imported_before() -> None:
    importlib.import_module("segx.reporting.bench_document")
    with pytest.raises(segx.SegxError, match="no model given"):
        segx.benchmark()
    code = "import segx\ntry: segx.benchmark()\nexcept segx.SegxError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no model given" in done.stdout
