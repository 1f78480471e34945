"""How far right answers differ by float32 arithmetic, in units of 2^-23 of the largest logit.

    uv run python tests/benchmarks/rounding.py

Untrained models of segmentation-models-pytorch with the batch-norm statistics of random images, run by PyTorch with
other threads and batch sizes, by ONNX Runtime, by OpenVINO and by PyTorch in float64.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator

import click
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import openvino
import segmentation_models_pytorch as smp
import torch

ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "Linknet", "DeepLabV3Plus", "MAnet", "PAN", "Segformer")
ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")

FloatArray = npt.NDArray[np.float32]


def main() -> None:
    """Print a line per model: the largest difference of each run from PyTorch's."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    for architecture in ARCHITECTURES:
        for encoder in ENCODERS:
            model = smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=2)
            images = torch.randn(2, 3, 128, 128)
            with torch.no_grad():
                for _ in range(2):  # statistics of the batch norms
                    model(torch.randn(4, 3, 128, 128))
                model.eval()
                expected = model(images).numpy()
                unit = float(np.abs(expected).max()) * 2.0**-23
                found = [f"{name} {np.abs(expected - got).max() / unit:.0f}" for name, got in others(model, images)]
            click.echo(f"{architecture:14} {encoder:16} {', '.join(found)}")


def others(model: torch.nn.Module, images: torch.Tensor) -> Iterator[tuple[str, FloatArray]]:
    """Yield the logits of the same model and images, computed in other ways."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    yield "threads", model(images).numpy()
    torch.set_num_threads(threads)
    yield "batch", np.concatenate([model(image[None]).numpy() for image in images])
    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, dynamo=False, opset_version=17)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    yield "ONNX Runtime", session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    yield "OpenVINO", core.compile_model(core.read_model(file.getvalue()), "CPU", settings)(images.numpy())[0]
    yield "float64", model.double()(images.double()).numpy()


if __name__ == "__main__":
    main()
