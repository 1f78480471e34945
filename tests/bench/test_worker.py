"""Workers of real engines: what their import and memory are counted as."""

from __future__ import annotations

from pathlib import Path

import pytest

from segx.bench.inputs import prepare_inputs
from segx.bench.plan import CellTask
from segx.model.spec import ModelSpec
from segx.runtimes import RUNTIMES, RuntimeOptions, runtime_info
from segx.system.processes import Workers
from tests.benching import measured_with_allocation

# The compiler of torch.compile stays in its process, with over 100 MB of its own; a browser has processes of its own.
CPU_RUNTIMES = [
    name for name, info in RUNTIMES.items() if info.device == "cpu" and not info.compiles and not info.in_browser
]


@pytest.mark.serial
@pytest.mark.parametrize("name", CPU_RUNTIMES)
def test_the_library_is_counted_as_import_and_a_known_allocation_as_memory(
    name: str, tiny_spec: ModelSpec, tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    info = runtime_info(name)
    task = CellTask(
        runtime=name,
        model=tiny_checkpoint if info.takes == "checkpoint" else tiny_onnx,
        spec=tiny_spec,
        options=RuntimeOptions(threads=1),
        batch_size=1,
        inputs=prepare_inputs(tmp_path / "inputs", tiny_spec, folder=None, count=1),
        outputs=tmp_path / "outputs",
        memory_limit_bytes=None,
    )
    allocated = 400_000_000
    arguments = {"task": task, "allocated": allocated}
    loaded, finished = Workers(threads=1).call(measured_with_allocation, arguments, torch=info.torch, timeout_s=120)
    assert loaded.import_s > 0.01
    assert finished.memory.needed_bytes == pytest.approx(allocated, rel=0.05)
