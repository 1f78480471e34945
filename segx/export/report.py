"""An export's proof as a small table."""

from __future__ import annotations

from segx.export.to_onnx import Exported
from segx.table import aligned


def to_text(exported: Exported) -> str:
    """What was made, and the proof."""
    artifact, proof = exported.artifact, exported.proof
    size = artifact.path.stat().st_size / 2**20
    verb = "exported" if exported.rebuilt else "up to date"
    about = f"{size:.1f} MiB, opset {proof.opset}, {proof.nodes} nodes, batch axis {proof.batch_axis!r}"
    titles = ["batch", "max |diff|", "of range", "flipped px", "of pixels", "worst IoU"]
    rows = [
        [
            str(row.batch_size),
            f"{row.parity.max_abs_diff:.1e}",
            f"{row.parity.relative_diff:.1e}",
            str(row.parity.flipped_pixels),
            str(row.parity.pixels),
            f"{row.parity.worst_iou:.4f}",
        ]
        for row in proof.rows
    ]
    lines = (
        f"{verb}  {artifact.path}  ({about})",
        f"model     {artifact.spec}, output {artifact.output_kind}",
        f"weights   {artifact.checkpoint}, sha256 {artifact.weights_sha256[:12]}",
        "",
        "proof: ONNX Runtime against PyTorch on generated samples",
        aligned(titles, rows),
    )
    return "\n".join(lines) + "\n"
