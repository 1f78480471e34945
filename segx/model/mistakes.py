"""Files that are passed by mistake where a model is expected, by their first bytes."""

from __future__ import annotations

import re

# Regular expressions of the beginning of a file, what it is, and what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\s*version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (rb"(\xef\xbb\xbf)?\s*<.*<net\b", "the XML of an OpenVINO model", "give the ONNX file that it was made from"),
    (rb"(\xef\xbb\xbf)?\s*<[!?a-z]", "a web page (HTML or XML)", "download the file itself"),
    (rb'(\xef\xbb\xbf)?\s*[{\[]\s*["{\[][^\0]', "a JSON file", "give the path of the model"),
    (rb"\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed (gzip, bzip2, 7z, xz or zstd)", "unpack it"),
    (rb".{257}ustar", "a tar archive", "unpack it, and pass the file inside"),
    (rb"PK\x03\x04", "a zip archive", "unpack it, and pass the file inside"),
    (rb"[fp]trt", "a TensorRT plan", "give the ONNX file that it was built from"),
    (rb".{4}ORTM", "a model in ORT format", "give the ONNX file that it was made from"),
    (rb".{4}TFL3", "a TensorFlow Lite model", "convert it to ONNX with tf2onnx"),
    (rb"\x89HDF", "an HDF5 file, such as a Keras model", "convert it to ONNX with tf2onnx"),
    (rb"\x89PNG|\xff\xd8\xff", "an image", "give the path of the model"),
)


def kind_of(start: bytes) -> tuple[str, str] | None:
    """Return what a file is that begins with these (up to 512) bytes, and what to do; None if it may be a model."""
    found = ((what, hint) for begins, what, hint in _KINDS if re.match(begins, start, re.DOTALL | re.IGNORECASE))
    return next(found, None)
