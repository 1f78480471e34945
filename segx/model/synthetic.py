"""Synthetic grayscale microscopy scenes with ground-truth masks, from a seed.

A scene shows bright cells on a dark, unevenly lit field: touching and overlapping, of varied shape, brightness,
texture and edge softness, among debris (specks, fibres, bubbles, out-of-focus cells), under sensor noise.

The pixels are the same on every machine. Random bits are drawn raw from PCG64 (whose stream numpy guarantees,
unlike that of ``Generator`` methods), and pixels pass only through elementwise ``+ - * /``, ``sqrt``, comparisons and
rounding, which IEEE 754 fixes to the last bit; no ``exp``, ``sin``, BLAS or summation whose result depends on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segx.errors import OutputError, UsageError
from segx.system.files import write_bytes

FloatArray = npt.NDArray[np.float64]

MIN_SIZE = 16

# SHA-256 of the weights that were trained on these scenes; to other models they mean nothing.
TRAINED_ON_SCENES = frozenset(("37a56259c0b27f14c3160c4500ba61a4fe8dfc452a3c2a5ba98b2f4bf4b3ae28",))


@dataclass(frozen=True)
class Sample:
    """One scene.

    Attributes:
        name: ``sample_00042``, from the index.
        image: (H, W) uint8, 0 to 255.
        mask: (H, W) bool, True = cell.
    """

    name: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


def generate(index: int, *, seed: int = 0, height: int = 256, width: int = 256) -> Sample:
    """Draw scene ``index`` of the endless series ``seed``.

    Scenes scale with the shorter side, so another size gives a similar scene at another resolution.

    Args:
        index: position in the series, from 0.
        seed: seed of the series, from 0.
        height: pixels, at least 16.
        width: pixels, at least 16.

    Raises:
        UsageError: a side below 16 pixels, or a negative index or seed.
    """
    if min(height, width) < MIN_SIZE:
        raise UsageError(f"sample size {width}x{height} is too small", hint=f"use at least {MIN_SIZE} pixels a side")
    if index < 0 or seed < 0:
        raise UsageError(f"sample index {index} and seed {seed} must not be negative", hint="count both from 0")
    field = _Field(_Bits(seed, index), height, width)
    field.draw_background()
    field.draw_ghosts()
    field.draw_cells()
    field.draw_specks()
    field.draw_fibres()
    field.draw_bubbles()
    return Sample(name=f"sample_{index:05d}", image=field.expose(), mask=field.mask)


def series(count: int, *, seed: int = 0, height: int = 256, width: int = 256) -> Iterator[Sample]:
    """Yield the first ``count`` scenes of the series ``seed``, one at a time."""
    for index in range(count):
        yield generate(index, seed=seed, height=height, width=width)


def write_samples(folder: Path, *, count: int, seed: int = 0, height: int = 256, width: int = 256) -> Iterator[str]:
    """Write ``count`` scenes as ``images/NAME.png`` and ``masks/NAME.png`` (0 or 255) under ``folder``.

    Yield each name once both of its files exist.

    Raises:
        OutputError: the folder or a file in it cannot be written, or would replace another one.
        UsageError: see ``generate``.
    """
    import cv2

    for sample in series(count, seed=seed, height=height, width=width):
        for kind, pixels in (("images", sample.image), ("masks", sample.mask.astype(np.uint8) * np.uint8(255))):
            path, data = folder / kind / f"{sample.name}.png", cv2.imencode(".png", pixels)[1].tobytes()
            if path.parent.is_symlink():
                raise OutputError(f"{path.parent} is a link", hint="remove it, or choose another folder")
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.read_bytes() != data):
                raise OutputError(f"{path} already exists and is not this scene", hint="choose another folder")
            write_bytes(path, data)
        yield sample.name


class _Bits:
    """Uniform numbers from the raw bits of PCG64."""

    def __init__(self, seed: int, index: int) -> None:
        self._source = np.random.PCG64(np.random.SeedSequence([seed, index]))

    def raw(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
        return np.asarray(self._source.random_raw(shape), dtype=np.uint64)

    def array(self, shape: tuple[int, ...], low: float, high: float) -> FloatArray:
        unit = (self.raw(shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit

    def uniform(self, low: float, high: float) -> float:
        return float(self.array((1,), low, high)[0])

    def integer(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, inclusive."""
        return min(high, int(self.uniform(low, high + 1)))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def direction(self) -> tuple[float, float]:
        """Return a unit vector by the rational parametrisation of the circle, without trigonometry."""
        t = self.uniform(-1.0, 1.0)
        sign = 1.0 if self.chance(0.5) else -1.0
        cos, sin = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
        return (sign * cos, sin) if self.chance(0.5) else (sin, sign * cos)


def _smoothstep(x: npt.NDArray[np.floating]) -> FloatArray:
    """Return 0 below 0, 1 above 1, and 3x^2 - 2x^3 in between."""
    unit: FloatArray = np.minimum(np.maximum(x, 0.0), 1.0)
    return unit * unit * (3.0 - 2.0 * unit)


def _value_noise(bits: _Bits, height: int, width: int, periods_y: float, periods_x: float) -> FloatArray:
    """Return value noise: a random lattice, smoothly interpolated to (H, W), in [-1, 1]."""
    lattice = bits.array((int(periods_y) + 2, int(periods_x) + 2), -1.0, 1.0)
    y, x = (np.arange(n) + 0.5 for n in (height, width))
    y, x = y * (periods_y / height), x * (periods_x / width)
    top, left = y.astype(np.intp), x.astype(np.intp)
    down, right = _smoothstep(y - top)[:, None], _smoothstep(x - left)[None, :]
    rows = lattice[top] * (1.0 - down) + lattice[top + 1] * down
    return rows[:, left] * (1.0 - right) + rows[:, left + 1] * right


@dataclass(frozen=True)
class _Window:
    """A rectangle of the field with its pixel centres, in units of the field's shorter side."""

    rows: slice
    columns: slice
    y: FloatArray
    x: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]


class _Field:
    """The scene being drawn: light (H, W) float64 and the true mask. Lengths are in units of the shorter side."""

    def __init__(self, bits: _Bits, height: int, width: int) -> None:
        self._bits = bits
        self._unit = min(height, width)
        self._height, self._width = height, width
        self._extent_y, self._extent_x = height / self._unit, width / self._unit
        self._area = self._extent_y * self._extent_x
        self._light: FloatArray = np.zeros((height, width))
        self.mask: npt.NDArray[np.bool_] = np.zeros((height, width), dtype=np.bool_)

    def draw_background(self) -> None:
        slow = self._noise_over_field(2.0)
        self._light += self._bits.uniform(0.03, 0.14) * (1.0 + 0.35 * slow)

    def draw_cells(self) -> None:
        """Draw cells, each at a random place or touching or overlapping the previous one."""
        bits = self._bits
        typical = bits.uniform(0.045, 0.095)
        density = bits.uniform(0.08, 0.42)
        brightness = bits.uniform(0.28, 0.60)
        softness = bits.uniform(0.006, 0.016)
        clustering = bits.uniform(0.2, 0.8)
        count = max(1, round(density * self._area / (3.2 * typical * typical)))
        y, x, previous = 0.0, 0.0, 0.0
        for number in range(count):
            radius = typical * bits.uniform(0.65, 1.45)
            if number and bits.chance(clustering):
                step = (radius + previous) * bits.uniform(0.70, 1.05)
                dy, dx = bits.direction()
                y, x = y + dy * step, x + dx * step
            else:
                y, x = bits.uniform(0.0, self._extent_y), bits.uniform(0.0, self._extent_x)
            self._draw_cell(y, x, radius, brightness * bits.uniform(0.55, 1.35), softness)
            previous = radius

    def _draw_cell(self, y: float, x: float, radius: float, brightness: float, softness: float) -> None:
        bits = self._bits
        stretch = bits.uniform(1.0, 1.75)
        bend = bits.uniform(-0.35, 0.35)
        ruggedness = bits.uniform(0.03, 0.22)
        sin, cos = bits.direction()
        hollow = bits.uniform(-0.25, 0.30)
        grain = bits.uniform(0.05, 0.30)
        nucleus_y, nucleus_x = bits.uniform(-0.25, 0.25), bits.uniform(-0.25, 0.25)
        nucleus = bits.uniform(-0.30, 0.55)
        window = self._window(y, x, 2.0 * radius * stretch)
        if window is None:
            return
        height, width = window.shape
        # Fixed lattices, so that the number of bits drawn does not depend on the sampling.
        shape_noise = _value_noise(bits, height, width, 5.0, 5.0)
        texture = 0.6 * _value_noise(bits, height, width, 13.0, 13.0) + 0.4 * _value_noise(
            bits, height, width, 31.0, 31.0
        )
        along = ((window.y - y) * sin + (window.x - x) * cos) / (radius * stretch)
        across = ((window.y - y) * cos - (window.x - x) * sin) / radius
        across = across + bend * (along * along - 0.4)
        reach = np.sqrt(along * along + across * across) * (1.0 + ruggedness * shape_noise)
        inside = _smoothstep((1.0 - reach) * (radius / softness) + 0.5)
        core = (along - nucleus_x) * (along - nucleus_x) + (across - nucleus_y) * (across - nucleus_y)
        body = brightness * (1.0 + hollow * (reach * reach - 0.5) + grain * texture)
        body = body * (1.0 + nucleus * _smoothstep(1.4 - 5.0 * core))
        light = self._light[window.rows, window.columns]
        light += inside * (body - 0.55 * light)
        self.mask[window.rows, window.columns] |= reach <= 1.0

    def draw_ghosts(self) -> None:
        """Draw out-of-focus cells: large, faint, without an edge and not in the mask."""
        self._draw_spots(3, (0.08, 0.2), (0.02, 0.08), 1.0, lambda distance, radius: 1.0 - distance * (1.0 / radius))

    def draw_specks(self) -> None:
        """Draw dust: bright dots much smaller than a cell."""
        self._draw_spots(14, (0.004, 0.013), (0.15, 0.7), 1.5, lambda distance, radius: 1.5 - distance * (1.0 / radius))

    def _draw_spots(
        self,
        most: int,
        radii: tuple[float, float],
        brightnesses: tuple[float, float],
        reach: float,
        profile: Callable[[FloatArray, float], FloatArray],
    ) -> None:
        """Draw up to ``most`` spots per unit of area, of a profile by distance and radius, out to ``reach`` radii."""
        bits = self._bits
        for _ in range(bits.integer(0, round(most * self._area))):
            y, x = bits.uniform(0.0, self._extent_y), bits.uniform(0.0, self._extent_x)
            radius, brightness = bits.uniform(*radii), bits.uniform(*brightnesses)
            window = self._window(y, x, reach * radius)
            if window is not None:
                dy, dx = window.y - y, window.x - x
                distance = np.sqrt(dy * dy + dx * dx)
                self._light[window.rows, window.columns] += brightness * _smoothstep(profile(distance, radius))

    def draw_fibres(self) -> None:
        """Draw lint: thin bent lines, as chains of straight segments."""
        bits = self._bits
        for _ in range(bits.integer(0, round(3 * self._area))):
            y, x = bits.uniform(0.0, self._extent_y), bits.uniform(0.0, self._extent_x)
            thickness, brightness = bits.uniform(0.003, 0.006), bits.uniform(0.10, 0.40)
            dy, dx = bits.direction()
            for _ in range(bits.integer(2, 7)):
                turn = bits.uniform(-0.5, 0.5)
                dy, dx = dy + turn * dx, dx - turn * dy
                self._draw_line(y, x, y + 0.06 * dy, x + 0.06 * dx, thickness, brightness)
                y, x = y + 0.06 * dy, x + 0.06 * dx

    def _draw_line(self, y0: float, x0: float, y1: float, x1: float, thickness: float, brightness: float) -> None:
        dy, dx = y1 - y0, x1 - x0
        length2 = dy * dy + dx * dx
        window = self._window((y0 + y1) / 2, (x0 + x1) / 2, 0.06 + 2 * thickness)
        if window is None or length2 == 0.0:
            return
        along = ((window.y - y0) * dy + (window.x - x0) * dx) * (1.0 / length2)
        along = np.minimum(np.maximum(along, 0.0), 1.0)
        off_y, off_x = window.y - y0 - along * dy, window.x - x0 - along * dx
        reach = np.sqrt(off_y * off_y + off_x * off_x) * (1.0 / thickness)
        light = self._light[window.rows, window.columns]
        np.maximum(light, light + brightness * _smoothstep(1.5 - reach) * (light < brightness), out=light)

    def draw_bubbles(self) -> None:
        """Draw air bubbles: thin bright rings."""

        def rim(distance: FloatArray, radius: float) -> FloatArray:
            profile: FloatArray = 1.5 - np.abs(distance - radius) * (1.0 / 0.005)
            return profile

        self._draw_spots(2, (0.02, 0.06), (0.10, 0.35), 1.4, rim)

    def expose(self) -> npt.NDArray[np.uint8]:
        """Apply uneven illumination, shot and read noise, and quantise to 8 bits."""
        bits = self._bits
        y = (np.arange(self._height) + 0.5)[:, None] / self._height - 0.5
        x = (np.arange(self._width) + 0.5)[None, :] / self._width - 0.5
        tilt_y, tilt_x = bits.uniform(-0.35, 0.35), bits.uniform(-0.35, 0.35)
        vignette = bits.uniform(0.0, 0.7)
        lamp = 1.0 + tilt_y * y + tilt_x * x - vignette * (y * y + x * x) + 0.08 * self._noise_over_field(3.0)
        light = np.maximum(self._light * lamp, 0.0)
        sigma = bits.uniform(0.006, 0.022) + bits.uniform(0.01, 0.05) * np.sqrt(light)
        light = light + sigma * self._gaussian_noise()
        levels = np.floor(np.minimum(np.maximum(light, 0.0), 1.0) * 255.0 + 0.5)
        return levels.astype(np.uint8)

    def _gaussian_noise(self) -> FloatArray:
        """Return near-normal noise of variance 1: the sum of the four 16-bit quarters of each word (Irwin-Hall)."""
        words = self._bits.raw((self._height, self._width))
        quarter = np.uint64(0xFFFF)
        total = sum((words >> np.uint64(shift)) & quarter for shift in (0, 16, 32, 48))
        centred = np.asarray(total, dtype=np.float64) / 65535.0 - 2.0
        return centred * 1.7320508075688772  # sqrt(12 / 4): each uniform has variance 1/12

    def _noise_over_field(self, periods: float) -> FloatArray:
        periods_y, periods_x = periods * self._extent_y, periods * self._extent_x
        return _value_noise(self._bits, self._height, self._width, periods_y, periods_x)

    def _window(self, y: float, x: float, reach: float) -> _Window | None:
        """Return the pixels within ``reach`` of a point, or None if it lies outside the field."""
        top, bottom = (max(0, min(self._height, int((y + d) * self._unit))) for d in (-reach, reach))
        left, right = (max(0, min(self._width, int((x + d) * self._unit))) for d in (-reach, reach))
        if top >= bottom or left >= right:
            return None
        return _Window(
            rows=slice(top, bottom),
            columns=slice(left, right),
            y=((np.arange(top, bottom) + 0.5) / self._unit)[:, None],
            x=((np.arange(left, right) + 0.5) / self._unit)[None, :],
        )
