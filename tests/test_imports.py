"""What must not be imported where: torch takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "segmentation_models_pytorch",
    "onnx",
    "onnxruntime",
    "cv2",
    "rich",
    "jinja2",
    "tensorrt",
    "openvino",
)
ENGINES = ("torch", "torchvision", "segmentation_models_pytorch", "onnxruntime", "tensorrt", "openvino")


def modules_after(code: str, tmp_path: Path) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=open('modules.txt', 'w'))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    return {line.partition(".")[0] for line in (tmp_path / "modules.txt").read_text().splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["bench", "--help"],
        ["export", "--help"],
        ["samples", "-h"],
        ["predict", "-h"],
        ["doctor", "-h"],
        ["report", "-h"],
        ["history", "-h"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = f"from segx.cli.main import cli\nprint(cli.main({arguments}, standalone_mode=False))"
    assert not modules_after(code, tmp_path).intersection(HEAVY)


def test_the_package_and_the_list_of_runtimes_import_nothing_heavy(tmp_path: Path) -> None:
    code = "import segx, segx.runtimes\nsegx.runtimes.resolve_names(['all'])"
    assert not modules_after(code, tmp_path).intersection(HEAVY)


def test_the_parent_of_a_bench_imports_no_engine(tmp_path: Path) -> None:
    assert not modules_after("import segx.bench.api, segx.cli.doctor", tmp_path).intersection(ENGINES)


def test_the_worker_of_another_engine_imports_no_torch(tmp_path: Path) -> None:
    modules = modules_after("import segx.bench.worker, segx.runtimes.onnxruntime", tmp_path)
    assert "onnxruntime" in modules
    assert "torch" not in modules


def test_the_parent_of_a_prediction_imports_no_engine(tmp_path: Path) -> None:
    code = "import segx.predict.api, segx.predict.pipeline, segx.predict.choose, segx.predict.output"
    assert not modules_after(code, tmp_path).intersection(ENGINES)


def test_a_prediction_starts_its_engine_before_it_imports_anything_heavy(tmp_path: Path) -> None:
    code = "from segx.predict.options import RuntimeRequest\nimport segx.predict.api\nRuntimeRequest.of('openvino')"
    assert not modules_after(code, tmp_path).intersection(HEAVY)


def test_writing_samples_imports_no_engine(tmp_path: Path) -> None:
    code = "from segx.cli.main import cli\ncli.main(['samples', '--count', '1', '--out', 'x'], standalone_mode=False)"
    assert not modules_after(code, tmp_path).intersection(ENGINES)


def test_reading_and_writing_of_predict_imports_no_engine(tmp_path: Path) -> None:
    modules = modules_after("import segx.predict.sources, segx.predict.output, segx.predict.manifest", tmp_path)
    assert not modules.intersection({*ENGINES, "onnx", "rich", "scipy"})
