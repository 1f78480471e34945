"""Which models keep their masks in which runtime and precision, and in predictions: one Markdown table.

    uv run python tests/benchmarks/architectures.py
    uv run python tests/benchmarks/architectures.py --only Segformer --only FPN --steps 50
    uv run python tests/benchmarks/architectures.py --only foreign --only 'whole module.pt'

Three kinds of models are used as a user would: ``segx.benchmark`` exports them, calibrates int8 on a part of the images
and judges every variant by the reference's masks on others; ``segx.segment`` then segments all images with the fastest.

- architectures of segmentation_models_pytorch (3 channels, one class, ImageNet normalisation), trained for a moment on
  generated scenes and saved as state dicts;
- checkpoints: one such model, saved in every form that people have;
- foreign ONNX files of every form, in which a pixel is foreground where the mean of its colours is above a half.

The last column is the IoU of the mask files with the true masks, that before it the IoU of the reference's.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cv2
import numpy as np

import segx
from segx.analysis.figures import limits_for, quality_of, verdict_of
from segx.errors import SegxError, first_line
from segx.export import import_model
from segx.masks.agreement import breaches
from segx.masks.metrics import class_ious, lowest
from segx.model import synthetic
from segx.model.checkpoint import model_spec
from segx.model.spec import ModelSpec, normalization
from segx.results.types import Results
from segx.runtimes import Variant
from segx.system import machine

if TYPE_CHECKING:
    import torch

# Frameworks are imported in functions: every worker of a bench imports this file.

_VARIANTS = (
    "pytorch-cpu:bf16", "onnxruntime-cpu:fp32", "onnxruntime-cpu:int8", "openvino-cpu:fp32", "openvino-cpu:int8",
)  # fmt: skip
_SCENES, _BATCH, _TRAINING_SEED, _SEED = 160, 16, 5, 11
_SAMPLING = segx.SamplingOptions(warmup=1, min_time_s=0.0, min_runs=2, max_time_s=1.0, processes=1)

# DPT takes vision transformers alone; the others, the smallest usual encoder. Segformer is meant for its own.
_MODELS = (
    ("UnetPlusPlus", "resnet18"), ("Unet", "resnet18"), ("Unet", "resnet34"), ("FPN", "resnet18"),
    ("DeepLabV3", "resnet18"), ("DeepLabV3Plus", "resnet18"), ("Linknet", "resnet18"), ("MAnet", "resnet18"),
    ("PAN", "resnet18"), ("PSPNet", "resnet18"), ("UPerNet", "resnet18"), ("Segformer", "resnet18"),
    ("Segformer", "mit_b0"), ("DPT", "tu-vit_tiny_patch16_224.augreg_in21k"),
)  # fmt: skip

# PAN halves the last stage's 1/16 three times more; a vision transformer takes the size that it was made for.
_SIZE = 64
_SIZES = {"PAN": 128, "DPT": 224}
# DPT's own decoder takes nine tenths of the time at that size.
_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "DPT": {"decoder_intermediate_channels": [32, 64, 96, 96], "decoder_fusion_channels": 32}
}
_MEAN, _STD = normalization("imagenet", 3)

_State = Mapping[str, "torch.Tensor"]


def _smp(arch: str, encoder: str, **arguments: Any) -> Any:
    import segmentation_models_pytorch as smp

    return getattr(smp, arch)(encoder, encoder_weights=None, in_channels=3, classes=1, **arguments)


def _prefixed(prefix: str, state: _State) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _buffers() -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.tensor(v).view(1, 3, 1, 1) for name, v in (("mean", _MEAN), ("std", _STD))}


def _with_head(module: Any) -> dict[str, torch.Tensor]:
    auxiliary = _smp("FPN", "resnet18", aux_params={"classes": 2}).state_dict()
    return {**auxiliary, **module.state_dict()}


# Names of checkpoints -> what is saved of the trained module. Those that tell mean and std get none by options.
_CHECKPOINTS: Mapping[str, Callable[[Any], Any]] = {
    "state dict.pth": lambda module: module.state_dict(),
    "tensors.safetensors": lambda module: module.state_dict(),
    "whole module.pt": lambda module: module,
    "whole module in a dictionary.pt": lambda module: {"epoch": 3, "model": module},
    "data parallel.pth": lambda module: _prefixed("module.", module.state_dict()),
    "compiled.pth": lambda module: {"model_state_dict": _prefixed("_orig_mod.", module.state_dict())},
    "lightning with mean.ckpt": lambda module: {
        "state_dict": _prefixed("model.", module.state_dict()) | _buffers(),
        "hyper_parameters": {"lr": 1e-3},
    },
    "settings with mean.ckpt": lambda module: {
        "state_dict": module.state_dict(),
        "config": {"preprocess_params": {"input_space": "RGB", "mean": [*_MEAN], "std": [*_STD]}},
    },
    "unknown key.pth": lambda module: {"net": _prefixed("backbone.", module.state_dict()), "optimizer": {}},
    "average alone.pth": lambda module: {"ema": module.state_dict()},
    "average beside.pth": lambda module: {
        "ema": {name: tensor * 0 for name, tensor in module.state_dict().items()},
        "model": module.state_dict(),
    },
    "auxiliary head.pth": _with_head,
    "folder": lambda module: module.state_dict(),
}

_ONE = "float[1,3,1,1] w = {3.3333, 3.3333, 3.3333}, float[1] b = {-5}"
_TWO = "float[2,3,1,1] w = {-1.6667,-1.6667,-1.6667,1.6667,1.6667,1.6667}, float[2] b = {2.5,-2.5}"
_NESTED = f"float[3,3,1,1] w = {{{','.join(['6.6667'] * 9)}}}, float[3] b = {{-6,-10,-14}}"
_QUARTER = "h = AveragePool <kernel_shape = [4,4], strides = [4,4]> (x) y = Conv (h, w, b)"
_ANY_SIZE = "h = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) u = Resize (h, , s) y = Conv (u, w, b)"
_CHANNELS_LAST = "t = Transpose <perm = [0,3,1,2]> (x) z = Conv (t, w, b) y = Transpose <perm = [0,2,3,1]> (z)"
_TO_255 = _ONE.replace("3.3333", "0.01307")

# Names of foreign files -> nodes, weights, what to change in (input, output, opset), options that import them.
_FOREIGN: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {
    "logits": ("y = Conv (x, w, b)", _ONE, {}, {}),
    "sigmoid": ("z = Conv (x, w, b) p = Sigmoid (z) y = Identity (p)", _ONE, {}, {}),
    "softmax": ("z = Conv (x, w, b) y = Softmax <axis = 1> (z)", _TWO, {"gives": "float[n,2,64,64] y"}, {}),
    "class map": (
        "z = Conv (x, w, b) y = ArgMax <axis = 1, keepdims = 1> (z)", _TWO, {"gives": "int64[n,1,64,64] y"}, {},
    ),
    "channels last": (
        _CHANNELS_LAST, _ONE, {"takes": "float[n,64,64,3] x", "gives": "float[n,64,64,1] y"}, {},
    ),
    "three axes": (
        "z = Conv (x, w, b) y = Squeeze (z, a)", f"{_ONE}, int64[1] a = {{1}}", {"gives": "float[n,64,64] y"}, {},
    ),
    "a quarter of the size": (_QUARTER, _ONE, {"gives": "float[n,1,16,16] y"}, {}),
    "batches of four": ("y = Conv (x, w, b)", _ONE, {"takes": "float[4,3,64,64] x", "gives": "float[4,1,64,64] y"}, {}),
    "any size": (
        _ANY_SIZE,
        f"{_ONE}, float[4] s = {{1,1,2,2}}",
        {"takes": "float[n,3,h,w_] x", "gives": "float[n,1,h,w_] y"},
        {"height": 64, "width": 64},
    ),
    "several outputs": (
        "y = Conv (x, w, b) aux = Neg (y)", _ONE, {"gives": "float[n,1,64,64] y, float[n,1,64,64] aux"},
        {"output_name": "y"},
    ),
    "0 to 255": ("y = Conv (x, w, b)", _TO_255, {}, {"input_range": "0-255"}),
    "opset 11": ("y = Conv (x, w, b)", _ONE, {"opset": 11}, {}),
    "one of three sigmoids": (
        "z = Conv (x, w, b) y = Sigmoid (z)", _NESTED, {"gives": "float[n,3,64,64] y"}, {"output_channel": 1},
    ),
    "multilabel": ("z = Conv (x, w, b) y = Sigmoid (z)", _NESTED, {"gives": "float[n,3,64,64] y"}, {}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Case:
    """A row: ``files`` writes the model and returns what ``segx.benchmark`` and ``segx.segment`` take of it."""

    kind: str
    name: str
    size: int
    files: Callable[[], Mapping[str, Any]]


def _cases(steps: int) -> Iterator[_Case]:
    for arch, encoder in _MODELS:
        spec = _spec(arch, encoder)

        def trained(spec: ModelSpec = spec) -> Mapping[str, Any]:
            import torch

            torch.save(_trained(spec, steps).state_dict(), "model.pth")
            return {"checkpoint": "model.pth", "spec": spec}

        yield _Case(arch, encoder, spec.height, trained)
    fpn = _spec("FPN", "resnet18")
    module: list[Any] = []  # trained once, if it is wanted
    for name in _CHECKPOINTS:

        def saved(name: str = name) -> Mapping[str, Any]:
            module[:] = module or [_trained(fpn, steps)]
            return _checkpoint(name, module[0], fpn)

        yield _Case("checkpoint", name, _SIZE, saved)
    for name in _FOREIGN:
        yield _Case("foreign", name, _SIZE, lambda name=name: _foreign(name))  # type: ignore[misc]


@click.command(help=__doc__)
@click.option(
    "--only",
    multiple=True,
    help="Only this name in the first two columns; repeatable.",
)
@click.option("--steps", default=150, show_default=True, help="Training steps of 16 scenes.")
@click.option("--images", default=36, show_default=True, help="Scenes to calibrate, judge and segment.")
def main(only: tuple[str, ...], steps: int, images: int) -> None:
    """Print the table line by line, and the reasons below it."""
    names = [*dict.fromkeys(name for case in _cases(steps) for name in (case.kind, case.name))]
    if unknown := set(only) - set(names):
        raise click.UsageError(f"no {min(unknown)}; there are {', '.join(names)}")
    versions = (f"{name} {metadata.version(name)}" for name in ("torch", "segmentation_models_pytorch"))
    click.echo(f"{machine.cpu_name()}; {', '.join(versions)}\n")
    titles = ("model", "of", "size", *_VARIANTS, "IoU of the reference", "IoU of predict")
    click.echo(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    reasons: list[str] = []
    for case in _cases(steps):
        if only and not {case.kind, case.name} & set(only):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)  # where artifacts go
            cells = _used(case, images, reasons)
            os.chdir("/")
        click.echo(f"| {' | '.join((case.kind, case.name, str(case.size), *cells))} |")
    click.echo("\n" + "\n".join(f"- {reason}" for reason in dict.fromkeys(reasons)))


def _spec(arch: str, encoder: str) -> ModelSpec:
    size = _SIZES.get(arch, _SIZE)
    return ModelSpec(
        arch=arch,
        encoder_name=encoder,
        in_channels=3,
        height=size,
        width=size,
        mean=_MEAN,
        std=_STD,
        arguments=_ARGUMENTS.get(arch, {}),
    )


def _used(case: _Case, images: int, reasons: list[str]) -> list[str]:
    """Make, bench and predict one model; return the cells of its row."""
    try:
        files = case.files()
        multilabel = bool(files.get("spec") and files["spec"].multilabel)
        _write_images(case, images)
        results = segx.benchmark(
            **files,
            runtimes=("pytorch-cpu", "onnxruntime-cpu", "openvino-cpu"),
            precisions=("fp32", "bf16", "int8"),
            batch_sizes=(4,) if case.name == "batches of four" else (1,),
            data=segx.DataOptions(images="scenes/images", masks=None if multilabel else "scenes/masks"),
            sampling=_SAMPLING,
            output="artifacts/bench",
        )
        judged = [_judgement(results, name, case, reasons) for name in _VARIANTS]
        segx.segment("scenes/images", "masks", **files)
    except SegxError as error:
        reasons.append(f"{case.kind} {case.name}: {first_line(error)}")
        return ["no"] * (len(_VARIANTS) + 2)
    reference = results.reference_masks
    told = f"{reference.truth_iou:.3f}" if reference and reference.truth_iou is not None else "–"
    return [*judged, told, f"{_iou_of_files('masks/1' if multilabel else 'masks'):.3f}"]


def _write_images(case: _Case, count: int) -> None:
    """Write scenes, or for foreign files a bright rectangle in each image, and true masks."""
    if case.kind != "foreign":
        list(synthetic.write_samples(Path("scenes"), count=count, seed=_SEED, height=case.size, width=case.size))
        return
    chance = np.random.default_rng(_SEED)
    for kind in ("images", "masks"):
        Path("scenes", kind).mkdir(parents=True)
    for number in range(count):
        top, left, height, width = (8 * int(side) for side in chance.integers(1, 4, 4))
        mask = np.zeros((case.size, case.size), np.uint8)
        mask[top : top + height, left : left + width] = 255
        image = np.where(mask[..., None], 220, 40) + chance.integers(-5, 6, (*mask.shape, 1))
        cv2.imwrite(f"scenes/images/{number:05}.png", image.astype(np.uint8).repeat(3, 2))
        cv2.imwrite(f"scenes/masks/{number:05}.png", mask)


def _trained(spec: ModelSpec, steps: int) -> Any:
    import torch

    torch.manual_seed(0)
    module = _smp(spec.arch, spec.encoder_name, **spec.arguments)
    scenes = list(synthetic.series(_SCENES, seed=_TRAINING_SEED, height=spec.height, width=spec.width))
    unit = torch.from_numpy(np.stack([scene.image for scene in scenes])).float()[:, None].repeat(1, 3, 1, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    inputs, truth = (unit - mean) / std, torch.from_numpy(np.stack([scene.mask for scene in scenes])).float()[:, None]
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module.train()
    for _ in range(steps):
        chosen = torch.randint(0, _SCENES, (_BATCH,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(module(inputs[chosen]), truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def _checkpoint(name: str, module: Any, spec: ModelSpec) -> Mapping[str, Any]:
    """Save a model; what the file does not tell is given by options."""
    import torch
    from safetensors.torch import save_file

    path, content = Path(name), _CHECKPOINTS[name](module)
    given: dict[str, Any] = {"height": spec.height, "width": spec.width}
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix:
        torch.save(content, path)
    else:
        module.save_pretrained(path)
    if not ("whole" in name or name == "folder"):
        given |= {"arch": spec.arch, "encoder_name": spec.encoder_name, "in_channels": 3}
    if "with mean" not in name:
        given["normalize"] = "imagenet"
    return {"checkpoint": path, "spec": model_spec(path, given)}


def _foreign(name: str) -> Mapping[str, Any]:
    import onnx.parser

    body, weights, changes, options = _FOREIGN[name]
    parts = {"takes": "float[n,3,64,64] x", "gives": "float[n,1,64,64] y", "opset": 17, **changes}
    header = f'<ir_version: 7, opset_import: ["": {parts["opset"]}]>'
    text = f"{header} g ({parts['takes']}) => ({parts['gives']}) <{weights}> {{ {body} }}"
    onnx.save(onnx.parser.parse_model(text), "foreign.onnx")
    artifact = import_model("foreign.onnx", options).artifact
    return {"model": artifact.path, "spec": artifact.spec}


def _judgement(results: Results, name: str, case: _Case, reasons: list[str]) -> str:
    runtime, _, precision = name.partition(":")
    if case.kind == "foreign" and runtime.startswith("pytorch"):
        return "–"
    variant: Any = Variant(runtime, precision)  # type: ignore[arg-type]
    cell = next((cell for cell in results.cells if cell.variant == variant), None)
    if cell is None or not cell.measured or cell.status != "ok":
        reasons.append(f"{case.kind} {case.name}, {name}: {cell.reason if cell else 'not measured'}")
    if cell is None or not cell.parity:
        return "reference" if cell and cell.measured and str(variant) == results.reference else "no"
    reasons += [
        f"{case.kind} {case.name}, {name}: {breach}"
        for breach in breaches(cell.parity, limits_for(variant.precision, results.options))
    ]
    quality = quality_of(results, cell)
    return f"{verdict_of(results, cell) or 'not judged'} ({cell.parity.flipped_pixels} px)" + (
        f", {quality}" if quality else ""
    )


def _iou_of_files(folder: str) -> float:
    """Return the mean IoU of the mask files with the true masks."""
    found, truth = (
        np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0 for path in sorted(Path(each).glob("*.png"))])
        for each in (folder, "scenes/masks")
    )
    return float(lowest(class_ious(found.astype(np.uint8), truth.astype(np.uint8), 1)).mean())


if __name__ == "__main__":
    main()
