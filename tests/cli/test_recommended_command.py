"""The command that a bench prints makes the file that the bench measured."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segx.analysis.recommend import export_command
from segx.masks.image_io import write_png
from segx.results.store import load_results
from segx.system.files import sha256_of
from tests.cli.command import QUICK, segx


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / "photos" / f"{number}.png", chance.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return tmp_path / "photos"


def _foreign_onnx(folder: Path) -> list[str]:
    chance = np.random.default_rng(0)
    weights = [chance.normal(0, 0.2, shape).astype(np.float32) for shape in ((8, 3, 3, 3), (1, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["photo", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w1"], ["z"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["z"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "foreign net.onnx")
    return ["--model", "models/foreign net.onnx", "--input-size", "48x32", "--normalize", "imagenet"]


def _pth_with_arguments(folder: Path) -> list[str]:
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    model = smp.Unet(
        "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=[32, 16, 16], decoder_attention_type="scse"
    )
    torch.save(model.state_dict(), folder / "unet.pth")
    described = ["--arch", "Unet", "--encoder", "resnet18", "--encoder-depth", "3", "--decoder-channels", "32,16,16"]
    images = ["--in-channels", "3", "--input-size", "64x32", "--normalize", "imagenet"]
    return ["--weights", "models/unet.pth", *described, *images, "--model-arg", "decoder_attention_type=scse"]


def _folder(folder: Path) -> list[str]:
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    model = smp.Linknet("resnet18", encoder_weights=None, encoder_depth=3, in_channels=1, classes=2)
    model.save_pretrained(folder / "linknet", push_to_hub=False)
    return ["--weights", "models/linknet", "--input-size", "32", "--resize", "letterbox"]


@pytest.mark.parametrize(
    ("model", "runtime"),
    [
        (_foreign_onnx, "onnxruntime-cpu,openvino-cpu"),
        pytest.param(_pth_with_arguments, "openvino-cpu", marks=pytest.mark.slow),
        pytest.param(_folder, "onnxruntime-cpu", marks=pytest.mark.slow),
    ],
)
def test_each_printed_command_makes_the_measured_file_again(
    model: Callable[[Path], list[str]], runtime: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    given = model(tmp_path / "models")
    runtimes = ("--runtime", runtime, "--precision", "fp32,int8", "--batch-size", "1")
    calibration = ("--calibration", photos.name, "--min-iou", "0", "--max-flips", "100%")
    benched = segx("bench", *given, *runtimes, *calibration, *QUICK, "--output", "out", cwd=tmp_path)
    assert benched.returncode == 0, benched.stderr
    results = load_results(tmp_path / "out")
    digests = {made.path: made.sha256 for made in results.model.derived.values()}
    digests |= {results.model.onnx or "": results.model.onnx_sha256 or ""}
    measured = {str(cell.variant): cell for cell in results.cells if cell.measured}
    assert len(measured) == 2 * len(runtime.split(",")), benched.stdout
    for name, cell in measured.items():
        if name == "onnxruntime-cpu:fp32":  # its file is made on the way to the others, or was imported
            continue
        command = export_command(cell, results)
        for path in (tmp_path / "artifacts").glob("*.onnx*"):
            if "--model" not in given or "int8" in path.name or "openvino" in path.name:
                path.unlink()
        program, *words = shlex.split(command)
        assert program == "segx"
        made = segx(*words, "--json", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        for path in (tmp_path / "artifacts").glob("*.onnx"):
            assert sha256_of(path) == digests[str(path)], name
