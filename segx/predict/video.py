"""The frames of a video, decoded one after the other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from segx.errors import ImageError
from segx.predict.item import Item, printable

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")


class VideoInputs:
    """Every frame of a video, named ``clip.mp4/000012`` by its number from 0.

    Args:
        path: a file.

    Raises:
        ImageError: it cannot be opened as a video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.source = printable(str(path))
        capture = self._opened()
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = round(announced) if announced >= 1 else None
        capture.release()

    def _opened(self) -> Any:
        # As an absolute path: FFmpeg takes "a:b.mp4" for a protocol. OpenCV's other back ends take "%d" for a number.
        try:
            with self._path.open("rb"):
                capture = cv2.VideoCapture(os.fsencode(self._path.absolute()).decode(), cv2.CAP_FFMPEG)
        except OSError as error:
            hint = "check the path and its permissions"
            raise ImageError(f"cannot read {self.source}: {error.strerror}", hint=hint) from error
        except UnicodeDecodeError as error:
            raise ImageError(f"OpenCV cannot open {self.source}: its name is no UTF-8", hint="rename it") from error
        if not capture.isOpened():
            raise ImageError(f"{self.source} is no video that OpenCV can read", hint="convert it, or give its frames")
        return capture

    def __iter__(self) -> Iterator[Item]:
        capture = self._opened()
        try:
            number = 0
            while (read := capture.read())[0]:
                yield Item(f"{self._path.name}/{number:06d}", self._path, frame=read[1])
                number += 1
        finally:
            capture.release()
        if number == 0:
            raise ImageError(f"{self.source} holds no frame that can be decoded", hint="convert it, or copy it again")
        if self.count is not None and number < self.count:
            # No error: containers round, or count the length of the sound.
            logger.warning("%s announces %d frames and holds %d: is it cut off?", self.source, self.count, number)
