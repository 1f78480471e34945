"""The page that segments images in the browser: what it consists of, and how it is written as a static site."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec

from segx import __version__
from segx.errors import OutputError, UsageError
from segx.export.artifact import read_artifact
from segx.masks.preprocess import colour_of
from segx.model import synthetic
from segx.model.spec import ModelSpec
from segx.system.files import folder_written_whole, output_errors, sha256_of, write_bytes, written_whole
from segx.web import site_files, site_readme

MANIFEST_NAME = "segx-site.json"
# Of the images that browsers read: gray, colours, colours with alpha.
_CHANNELS = (1, 3, 4)
MAX_IMAGE_BYTES = 64 << 20
_SAMPLES = 4
_ANOTHER = "choose another folder"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A static site that was written: its size in bytes, and the names of its models."""

    path: Path
    size: int
    models: tuple[str, ...]


class _Manifest(msgspec.Struct):
    segx: str
    files: dict[str, str]  # SHA-256 by path


def page_content(
    models: Mapping[str, Path], spec: ModelSpec, *, native: Sequence[str] = (), threads: int | None = None
) -> dict[str, Path | bytes]:
    """Return the files of the page, or their content, by their path in its folder.

    Args:
        models: exported files by their name in the page; the first is used when the page opens.
        spec: the model's description, of a size that the files take.
        native: variants that the server runs for the page to compare with.
        threads: threads of the browser; None for as many as it finds useful.

    Raises:
        ArtifactError: a model cannot be used.
        UsageError, RuntimeUnavailable: see ``check_page``.
    """
    check_page(spec)
    artifact = read_artifact(next(iter(models.values()))).require_logits()
    samples = _samples(spec)
    values = [255] if spec.classes == 1 else [k + spec.multilabel for k in range(spec.classes)]
    description = {
        "name": Path(artifact.checkpoint).stem,
        "description": f"{spec}: {spec.preprocessing}.",
        "spec": dataclasses.asdict(spec),
        "files": [{"name": name, "url": f"{name}.onnx", "bytes": path.stat().st_size} for name, path in models.items()],
        "batch_size": artifact.batch_size or 1,
        "max_bytes": MAX_IMAGE_BYTES,
        "colours": [colour_of(value) for value in values],
        "samples": list(samples),
        "native": list(native),
        "threads": threads,
    }
    return {
        **{path.removeprefix("/"): file for path, file in site_files().items()},
        **{f"{name}.onnx": path for name, path in models.items()},
        **samples,
        "model.json": json.dumps(description).encode(),
    }


def check_page(spec: ModelSpec) -> None:
    """Check that a page can segment the images of a model.

    Raises:
        UsageError: browsers cannot read images with that many channels.
        RuntimeUnavailable: files of npm packages are missing.
    """
    if spec.in_channels not in _CHANNELS:
        raise UsageError(
            f"the model takes {spec.in_channels} channels, but browsers read images with 1, 3 or 4",
            hint="segment its images with `segx predict`",
        )
    site_files()


def _samples(spec: ModelSpec) -> dict[str, bytes]:
    """Return generated scenes as PNG; none for a model whose fourth channel they lack."""
    if spec.in_channels > 3:
        return {}
    height, width = (max(side, synthetic.MIN_SIZE) for side in (spec.height, spec.width))
    scenes = synthetic.series(_SAMPLES, height=height, width=width)
    return {f"samples/{scene.name}.png": cv2.imencode(".png", scene.image)[1].tobytes() for scene in scenes}


def write_site(folder: Path, models: Mapping[str, Path], spec: ModelSpec) -> Site:
    """Write the page of a model as a static site, completely or not at all; a site that segx wrote there is replaced.

    Raises:
        OutputError: the folder cannot be written, or see ``check_site``.
        ArtifactError, UsageError, RuntimeUnavailable: see ``page_content``.
    """
    content = page_content(models, spec)
    name = Path(read_artifact(next(iter(models.values()))).checkpoint).stem
    content["README.md"] = f"# {name} in the browser\n\n{spec}: {spec.preprocessing}.\n\n{site_readme()}".encode()
    check_site(folder)
    with folder_written_whole(folder, lambda old: _check_own(old, folder)) as new:
        for name, source in content.items():
            if isinstance(source, bytes):
                write_bytes(new / name, source)
            else:
                with written_whole(new / name) as target:
                    shutil.copyfile(source, target)
        digests = {name: sha256_of(new / name) for name in content}
        write_bytes(new / MANIFEST_NAME, msgspec.json.encode(_Manifest(__version__, digests)))
        size = sum((new / name).stat().st_size for name in content)
    return Site(path=folder, size=size, models=tuple(models))


def check_site(folder: Path) -> None:
    """Check that a site can be written to a folder.

    Raises:
        OutputError: the folder holds files that segx did not write, or the working folder, which would be gone.
        RuntimeUnavailable: files of npm packages are missing.
    """
    site_files()
    if not folder.exists():
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder} is the working folder, or holds it", hint=_ANOTHER)
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, and a site is a folder", hint=_ANOTHER)
    _check_own(folder, folder)


def _check_own(folder: Path, shown: Path) -> None:
    """Raise OutputError, about the folder as ``shown``, if it holds anything that segx did not write."""
    written: Mapping[str, str] = {}
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        written = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=_Manifest).files
    with output_errors(shown):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not _is_own(path, name, written):
                raise OutputError(f"{shown / name} was not written by segx, or has changed since", hint=_ANOTHER)


def _is_own(path: Path, name: str, written: Mapping[str, str]) -> bool:
    if name == MANIFEST_NAME:
        return bool(written)
    if path.is_dir():
        return any(file.startswith(f"{name}/") for file in written)
    return path.is_file() and written.get(name) == sha256_of(path)
