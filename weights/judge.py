"""Judge weights on generated scenes they were never trained on: prints JSON, draws good.png and bad.png.

    uv run python weights/judge.py

The scenes come from seed 2; training uses seed 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cv2
import numpy as np
import numpy.typing as npt

from segx.masks.metrics import class_ious, lowest
from segx.masks.preprocess import FloatArray, MaskArray, masks_from_logits, preprocess, resize_mask
from segx.model import synthetic
from segx.model.checkpoint import checkpoint_digest, described
from segx.model.smp import load_model
from segx.model.spec import ModelSpec
from segx.system.files import write_bytes

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent

HELD_OUT_SEED = 2
HELD_OUT_SCENES = 200
LARGE_SCENES = 50
LARGE_SIZE = 512
MARGINS = (0.1, 0.5, 1, 2)
# Nearer to a true cell an error is a matter of where its edge is drawn; farther away, debris was taken for a cell.
EDGE_PIXELS = 2

CASES = 3
COLUMNS = ("input", "truth", "prediction", "differences")
PANEL, GAP, LINE, TEXT = 512, 16, 44, 26
WHITE, INK, DARK, GRAY = (255, 255, 255), (32, 32, 32), (20, 20, 20), (120, 120, 120)
# Orange and sky blue of Okabe & Ito 2008, which readers of every colour vision tell apart.
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
LEGEND = ((GRAY, "true positive"), (ORANGE, "false positive"), (BLUE, "false negative"))


@dataclass(frozen=True)
class Case:
    """One scene and what the model made of it.

    Attributes:
        scene: image and truth, (H, W).
        mask: (H, W) uint8, 0 or 1, at the scene's own size.
        iou: of ``mask`` and truth, 0 to 1.
        margins: (height, width) float32, distance of each logit from the cut, at the model's size.
    """

    scene: synthetic.Sample
    mask: MaskArray
    iou: float
    margins: FloatArray


def held_out() -> Iterable[synthetic.Sample]:
    """The scenes that the shipped weights are judged on."""
    return synthetic.series(HELD_OUT_SCENES, seed=HELD_OUT_SEED)


def judge_scene(model: torch.nn.Module, spec: ModelSpec, scene: synthetic.Sample, device: str = "cpu") -> Case:
    """Segment one scene of any size the way a user would: resize to the model, cut, resize back."""
    import torch

    batch = torch.from_numpy(preprocess(scene.image[:, :, None], spec))[None].to(device)
    with torch.inference_mode():
        logits: FloatArray = model(batch).float().cpu().numpy()
    mask = resize_mask(masks_from_logits(logits, spec)[0], scene.mask.shape)
    iou = float(lowest(class_ious(mask[None], scene.mask[None].astype(np.uint8), 1))[0])
    return Case(scene, mask, iou, np.abs(logits[0, 0] - np.float32(spec.logit_threshold)))


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """Figures over scenes: IoU and Dice are means over scenes, shares are of all pixels together."""
    ious = np.array([case.iou for case in cases])
    worst = int(ious.argmin())
    truths = np.stack([case.scene.mask for case in cases])
    masks = np.stack([case.mask for case in cases]).astype(np.bool_)
    far = np.stack([_far_from_cells(case.scene.mask) for case in cases])
    margins = np.stack([case.margins for case in cases])
    predicted = max(1, int(masks.sum()))
    return {
        "scenes": len(cases),
        "mean_iou": float(ious.mean()),
        "median_iou": float(np.median(ious)),
        "p5_iou": float(np.percentile(ious, 5)),
        "worst_iou": float(ious[worst]),
        "worst_scene": cases[worst].scene.name,
        "mean_dice": float((2 * ious / (1 + ious)).mean()),
        "share_of_predicted_pixels_outside_the_truth": float((masks & ~truths).sum() / predicted),
        f"share_of_predicted_pixels_over_{EDGE_PIXELS}_px_from_any_cell": float((masks & far).sum() / predicted),
        "share_of_true_pixels_missed": float((truths & ~masks).sum() / truths.sum()),
        **{f"share_of_logits_within_{m}_of_the_cut": float((margins < m).mean()) for m in MARGINS},
    }


def _far_from_cells(truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    outside = cv2.distanceTransform((~truth).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(outside) > EDGE_PIXELS


def iou_of_resized_truth(scenes: Iterable[synthetic.Sample], spec: ModelSpec) -> float:
    """Mean IoU that a perfect mask of the model's size would reach once it is resized to the scene."""
    ious = []
    for scene in scenes:
        truth = scene.mask.astype(np.uint8)
        shares = cv2.resize(truth.astype(np.float32), (spec.width, spec.height), interpolation=cv2.INTER_AREA)
        perfect = resize_mask((np.asarray(shares) >= 0.5).astype(np.uint8), scene.mask.shape)
        ious.append(lowest(class_ious(perfect[None], truth[None], 1))[0])
    return float(np.mean(ious))


def parameters(model: torch.nn.Module, spec: ModelSpec) -> dict[str, int]:
    """How many parameters the model has, and how many the library's model has with the parts that never run."""
    import segmentation_models_pytorch as smp
    import torch

    with torch.device("meta"):
        whole = getattr(smp, spec.arch)(
            encoder_name=spec.encoder_name,
            encoder_weights=None,
            in_channels=spec.in_channels,
            classes=spec.classes,
            **spec.arguments,
        )
    live, total = (sum(p.numel() for p in module.parameters()) for module in (model, whole))
    return {"live": live, "total": total}


def draw(cases: Sequence[Case], title: str) -> MaskArray:
    """A row per case: input, truth, prediction, differences; (H, W, 3) uint8 RGB."""
    lefts = [GAP + i * (PANEL + GAP) for i in range(len(COLUMNS))]
    head, row_height = 3 * LINE + GAP // 2, LINE + PANEL + GAP
    page = np.full((head + len(cases) * row_height, lefts[-1] + PANEL + GAP, 3), WHITE, dtype=np.uint8)
    _write(page, title, lefts[0], LINE, weight=700)
    for left, column in zip(lefts, COLUMNS, strict=True):
        _write(page, column, left, 2 * LINE + GAP, weight=700)
    _draw_legend(page, lefts[2], LINE)
    for row, case in enumerate(cases):
        top = head + row * row_height
        _write(page, f"{case.scene.name}   IoU {case.iou:.4f}", lefts[0], top + LINE - GAP)
        for left, panel in zip(lefts, _panels(case), strict=True):
            enlarged = cv2.resize(panel, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST)
            page[top + LINE : top + LINE + PANEL, left : left + PANEL] = enlarged
    return page


def _draw_legend(page: MaskArray, left: int, baseline: int) -> None:
    for colour, name in LEGEND:
        page[baseline - TEXT + 3 : baseline + 1, left : left + TEXT - 2] = colour
        left = _write(page, name, left + TEXT + 4, baseline) + 2 * GAP


def _panels(case: Case) -> list[MaskArray]:
    truth, mask = case.scene.mask, case.mask.astype(np.bool_)
    differences = np.full((*truth.shape, 3), DARK, dtype=np.uint8)
    for where, colour in ((truth & mask, GRAY), (mask & ~truth, ORANGE), (truth & ~mask, BLUE)):
        differences[where] = colour
    grays = [case.scene.image, truth.astype(np.uint8) * np.uint8(255), case.mask * np.uint8(255)]
    return [*(np.repeat(gray[:, :, None], 3, axis=2) for gray in grays), differences]


def _write(page: MaskArray, text: str, left: int, baseline: int, weight: int = 400) -> int:
    """Write one line; gives the column after its last letter."""
    (end, _), _ = cv2.putText(page, text, (left, baseline), INK, cv2.FontFace("sans"), TEXT, weight)
    return end


def _write_picture(path: Path, page: MaskArray) -> None:
    bgr = cv2.cvtColor(page, cv2.COLOR_RGB2BGR)
    smallest = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]
    write_bytes(path, cv2.imencode(".png", bgr, smallest)[1].tobytes())


@click.command()
@click.option(
    "--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=HERE / "weights_001.safetensors"
)
@click.option("--pictures", type=click.Path(path_type=Path), default=HERE, help="Folder for good.png and bad.png.")
def main(weights: Path, pictures: Path) -> None:
    """Judge on unseen scenes, of the model's size and larger; draw typical and worst cases."""
    spec = described(weights).spec or ModelSpec()
    model = load_model(weights, spec)
    cases = [judge_scene(model, spec, scene) for scene in held_out()]
    large_scenes = list(synthetic.series(LARGE_SCENES, seed=HELD_OUT_SEED, height=LARGE_SIZE, width=LARGE_SIZE))
    large = [judge_scene(model, spec, scene) for scene in large_scenes]
    report = {
        "weights": weights.name,
        "bytes": weights.stat().st_size,
        "sha256": checkpoint_digest(weights),
        "parameters": parameters(model, spec),
        "scenes_256": summary(cases),
        f"scenes_{LARGE_SIZE}": {
            **summary(large),
            "mean_iou_of_the_resized_truth": iou_of_resized_truth(large_scenes, spec),
        },
    }
    by_iou = sorted(cases, key=lambda case: case.iou)
    middle = len(by_iou) // 2
    _write_picture(pictures / "good.png", draw(by_iou[middle : middle + CASES], "Typical: scenes at the median IoU"))
    _write_picture(pictures / "bad.png", draw(by_iou[:CASES], "Worst: the scenes of lowest IoU"))
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
