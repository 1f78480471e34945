"""Results made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import pytest

from segx.bench.results import BenchOptions, Cell, InputFacts, ModelFacts, Results
from segx.machine import Machine
from segx.parity import Parity
from segx.spec import ModelSpec

_OPTIONS = BenchOptions(
    runtimes=("onnxruntime-cpu",),
    precisions=("fp32",),
    scopes=("forward",),
    batch_sizes=(1, 2),
    warmup=1,
    min_time_s=1.0,
    min_runs=4,
    max_time_s=20.0,
    seed=0,
    threads=2,
    memory_profile="default",
    budget_s=None,
    timeout_s=60.0,
    memory_limit_bytes=None,
)


class MakeResults(Protocol):
    def __call__(self, *cells: Cell, **options: Any) -> Results: ...


@pytest.fixture
def make_results() -> MakeResults:
    """Results with these cells, and with these of the options changed."""

    def make(*cells: Cell, **options: Any) -> Results:
        return Results(
            created="2026-01-01T00:00:00+00:00",
            segx="0.1.0",
            command="segx bench",
            options=dataclasses.replace(_OPTIONS, **options),
            model=ModelFacts(
                spec=ModelSpec(), weights_sha256="ab" * 32, checkpoint="w.pth", onnx=None, onnx_sha256=None
            ),
            inputs=InputFacts(
                source="4 images of photos", sha256="cd" * 32, names=("a.png", "b.png", "c.png", "d.png")
            ),
            reference="pytorch-cpu:fp32",
            machine=Machine("A CPU", (), 8, 2, 2**34, 2**33, (), 0.5, "Linux", "3.12", {"torch": "2.15"}),
            complete=True,
            cells=cells,
        )

    return make


class MakeParity(Protocol):
    def __call__(self, **changes: Any) -> Parity: ...


@pytest.fixture
def make_parity() -> MakeParity:
    """Masks of four images that agree, but for these changes."""

    def make(**changes: Any) -> Parity:
        same = Parity(
            images=4,
            pixels=4 * 65536,
            flipped_pixels=0,
            benign_flips=0,
            mean_iou=1.0,
            worst_iou=1.0,
            worst_image="b.png",
            mean_dice=1.0,
            max_abs_diff=1e-6,
            mean_abs_diff=1e-7,
            logit_range=40.0,
            noise_band=1e-6,
        )
        return dataclasses.replace(same, **changes)

    return make
