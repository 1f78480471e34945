from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import settings

from segx.bench import reference
from segx.cli.options import SHIPPED_WEIGHTS
from segx.errors import RuntimeUnavailable
from segx.model.spec import METADATA_KEY, ModelSpec
from segx.results.types import Cell, Parity, Results
from segx.runtimes.fake import SCRIPT_VARIABLE
from segx.web import engine_version
from segx.web.browser import find_browser
from tests import builders
from tests.browsing import browser, violations  # noqa: F401 - fixtures

settings.register_profile("segx", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100)
settings.load_profile("ci" if os.environ.get("CI") else "segx")

# Else each of the many processes that the tests start would compile the modules of torch anew, which takes 7 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two test processes share the cores: threads that spin for each other would slow both down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_NOBODY = 65534
_NUMBERS = itertools.count()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test marked ``serial`` while no other test of the same run is under way."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    # Every test passes the gate into the room; a serial test needs the room to itself. The gate keeps others from
    # entering while a serial test waits for the room to empty.
    folder = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with (folder / "room.lock").open("w") as room:
        with (folder / "gate.lock").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("serial") else fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # closing is not enough: a forked child still has the file open


def _loaded(name: str) -> ModuleType:
    """Import a module of tests/runtimes, so that test files can import it by name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "runtimes" / f"{name}.py")
    assert spec
    assert spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_DOUBLE = _loaded("tensorrt_double")
fake_cudart, tensorrt = _DOUBLE.fake_cudart, _DOUBLE.tensorrt

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Return a file that one process of the run makes, with what lies beside it, as this process's own copy."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / f"made-{name}"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                folder.mkdir()
                make(folder / name)
        return Path(shutil.copytree(folder, tmp_path_factory.mktemp(name) / "own")) / name

    return get


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    return ModelSpec(encoder_name="resnet18", height=32, width=32, arguments=arguments)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import save_file

    from segx.model.smp import build_module

    torch.manual_seed(0)
    state = {name: tensor.contiguous() for name, tensor in build_module(tiny_spec).state_dict().items()}
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_file(state, path, metadata={METADATA_KEY: tiny_spec.to_json()})
    return path


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path, make_once: MakeOnce) -> Path:
    import segx

    return make_once("tiny.onnx", lambda path: segx.export_onnx(tiny_checkpoint, output=path, threads=2))


@pytest.fixture(scope="session")
def shipped_onnx(shipped_checkpoint: Path, make_once: MakeOnce) -> Path:
    import segx

    return make_once("unetpp.onnx", lambda path: segx.export_onnx(shipped_checkpoint, output=path))


@pytest.fixture(scope="session")
def shipped_checkpoint() -> Path:
    return SHIPPED_WEIGHTS


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder whose permissions can be removed; unlike tmp_path, other users can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="segx-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def unprivileged() -> Callable[[], AbstractContextManager[None]]:
    """Run a block as an unprivileged user, since file permissions do not apply to root."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return block


@pytest.fixture(scope="session")
def browser_ready() -> None:
    """Skip a test where the browser, or the engine that pages run, is missing."""
    try:
        find_browser()
        engine_version()
    except RuntimeUnavailable as error:
        pytest.skip(f"{error.message}: {error.hint}")


PLAIN_SPEC = ModelSpec(height=32, width=32)


@pytest.fixture(scope="session")
def plain_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with segx's metadata that computes what the fake runtime computes."""
    from onnx import helper

    nodes = [
        helper.make_node("Sub", ["image", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["logits"]),
    ]
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    return builders.exported_onnx(path, PLAIN_SPEC, nodes, {"half": np.float32(0.5), "scale": np.float32(20)})


@pytest.fixture(autouse=True)
def references(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the benches of this test keep their references, made when one is kept."""
    folder = tmp_path_factory.getbasetemp() / "references" / str(next(_NUMBERS))
    monkeypatch.setattr(reference, "ARTIFACTS", folder)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Script the fake runtime."""

    def write(**values: Any) -> None:
        monkeypatch.setenv(SCRIPT_VARIABLE, json.dumps(values))

    return write


class MakeResults(Protocol):
    def __call__(self, *cells: Cell, **options: Any) -> Results: ...


@pytest.fixture
def make_results() -> MakeResults:
    """Build results with the given cells and bench options."""

    def make(*cells: Cell, **options: Any) -> Results:
        return builders.results(*cells, options=dataclasses.replace(builders.OPTIONS, **options))

    return make


class MakeParity(Protocol):
    def __call__(self, **changes: Any) -> Parity: ...


@pytest.fixture
def make_parity() -> MakeParity:
    """Build a parity of four images with identical masks, apart from the given changes."""
    return builders.parity
