"""The callable for ``map_batches`` without Ray, the command line on a cluster, and what is said when one is missing."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest

import segx
from segx.errors import ArtifactError, ImageError, RuntimeUnavailable, SegxError, UsageError
from segx.model.spec import ModelSpec
from segx.predict.manifest import Entry, settings_file
from segx.predict.options import OutputOptions, RuntimeRequest
from segx.predict.sources import Item, Source, open_source
from segx.predict.store import Earlier, Store
from segx.ray import PartSegmenter, Segmenter, _as_segx_error, _parts, _pool, segment_on_ray
from segx.runtimes.fake import SCRIPT_VARIABLE
from tests.builders import read_manifest
from tests.cli.command import segx as run_segx

ONE_THREAD = RuntimeRequest("fake", threads=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "photos"
    (folder / "more").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for number in range(60):
        place = folder / "more" if number % 3 else folder
        assert cv2.imwrite(str(place / f"{number:02}.png"), chance.integers(0, 256, (40, 50), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def local(photos: Path, plain_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the local engine writes for them."""
    output = tmp_path_factory.mktemp("local") / "masks"
    options = OutputOptions(overlay=True, probabilities=True)
    segx.segment(photos, output, model=plain_onnx, runtime=ONE_THREAD, options=options)
    return files_below(output)


def files_below(folder: Path) -> dict[str, bytes]:
    """Masks, overlays and probabilities by relative path."""
    suffixes = (".png", ".jpg", ".npy")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.suffix in suffixes}


@pytest.fixture
def segmenter(plain_onnx: Path) -> Iterator[Callable[..., Segmenter]]:
    made: list[Segmenter] = []

    def make(**changes: Any) -> Segmenter:
        made.append(Segmenter(**{"model": plain_onnx, "runtime": ONE_THREAD, **changes}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_rows_get_the_bytes_that_the_local_engine_writes(
    segmenter: Callable[..., Segmenter], photos: Path, local: dict[str, bytes]
) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    segment = segmenter(
        runtime=RuntimeRequest("fake", batch_size=4, threads=1), options=OutputOptions(overlay=True, probabilities=True)
    )
    segment = pickle.loads(pickle.dumps(segment))
    fsspec.filesystem("memory").pipe({f"/photos/{name}": (photos / name).read_bytes() for name in names[:20]})
    uris = [
        *(f"memory://photos/{name}" for name in names[:20]),
        *(str(photos / name) for name in names[20:40]),
        *(f"file://{photos / name}" for name in names[40:]),
    ]
    batch = {"uri": np.array(uris, dtype=object), "label": np.arange(len(uris))}
    try:
        done = segment(batch)
        again = segment({"bytes": np.array([(photos / name).read_bytes() for name in names], dtype=object)})
    finally:
        segment.close()
    assert {*done} == {"uri", "label", "mask", "overlay", "probabilities", "area", "status", "error"}
    assert list(done["mask"]) == list(again["mask"]) == [local[name] for name in names]
    assert list(done["overlay"]) == [local[name.replace(".png", ".overlay.jpg")] for name in names]
    assert list(done["probabilities"]) == [local[name.replace(".png", ".probabilities.npy")] for name in names]
    masks = [cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED) for mask in done["mask"]]
    assert list(done["area"]) == [np.count_nonzero(mask) for mask in masks]
    assert {*done["status"]} == {"done"}
    assert {*done["error"]} == {None}


def test_a_row_that_cannot_be_segmented_fails_alone(segmenter: Callable[..., Segmenter], photos: Path) -> None:
    image = (photos / "00.png").read_bytes()
    rows = [(image, None), (b"no image", None), (b"", None), (None, "nowhere://a.png"), (None, "memory://none.png")]
    rows += [(None, str(photos / "none.png")), (None, None), (7, None), (image[:-30], None), (image, None)]
    contents, uris = zip(*rows, strict=True)
    done = segmenter()({"bytes": contents, "uri": uris})
    assert list(done["status"]) == ["done", *["failed"] * 8, "done"]
    assert done["mask"][0] == done["mask"][-1]
    assert [*done["mask"][1:-1], *done["area"][1:-1]] == [None] * 16
    told = " | ".join(done["error"][1:-1])
    for part in (
        "is empty",
        "nowhere",
        "memory://none.png (row 4): it does not exist",
        "but NoneType",
        "but int",
        "is broken",
    ):
        assert part in told, told
    with pytest.raises(SegxError, match="row 1"):
        segmenter(options=OutputOptions(on_error="stop"))({"bytes": contents})


def test_what_a_worker_lacks_is_said_at_once(segmenter: Callable[..., Segmenter], plain_onnx: Path) -> None:
    batch, linear = {"bytes": [b""]}, ModelSpec(resize="linear")
    for changes, error, told in (
        ({"version": "0.0.9"}, RuntimeUnavailable, f"has segx {segx.__version__}, but the driver has 0.0.9"),
        ({"model": "none.onnx"}, ArtifactError, "has no file none.onnx"),
        ({"sha256": "0" * 64}, ArtifactError, "has the digest .*, but the driver's has 000000000000"),
        ({"runtime": "openvino:int8"}, ArtifactError, "is fp32, and openvino-cpu:int8 runs a file in int8"),
        ({"options": OutputOptions(class_names=("a",))}, UsageError, "1 class name for masks of 2 values"),
        ({"options": OutputOptions(scaled_decoding=True), "spec": linear}, UsageError, "averages pixels"),
    ):
        with pytest.raises(error, match=told):
            segmenter(**changes)(batch)
    with pytest.raises(UsageError, match="no column bytes or uri: image"):
        segmenter()({"image": [0]})
    for wrong in ("auto", "nonsense", "fake:int9", RuntimeRequest("fake", bench="artifacts")):
        with pytest.raises(UsageError):
            segmenter(runtime=wrong)
    arguments = Segmenter.arguments(plain_onnx, RuntimeRequest("fake", batch_size=2))
    assert arguments["version"] == segx.__version__
    assert Segmenter(**arguments).batch_size == 2


def test_images_below_a_url_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = ("a.jpg", "a.png", "b/c.TIF", "b/.hidden.png", ".d/e.png", "notes.txt", "images/f.png", "masks/f.png")
    for name in (*names, "old/segx-predict.json", "old/g.png", "results.json", "pictures/h.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/listed", recursive=True)
    for given in ("", "/**/*.png", "/b", "/a.png"):
        sources = [open_source(f"{base}{given}") for base in (folder, f"file://{folder}", "memory://listed")]
        found = [sorted((item.name, item.mask) for item in source) for source in sources]
        assert found[0] == found[1] == found[2]
        assert len({source.passed_over.line for source in sources}) == 1
    memory.pipe("/listed/a.pdf", b"x")
    memory.pipe("/listed/list.txt", b"memory://listed/a.png\nmemory://listed/b/c.TIF\n")
    assert [item.mask for item in open_source("memory://listed/list.txt")] == [
        "memory/listed/a.png",
        "memory/listed/b/c.png",
    ]
    for given, told in (
        ("memory://none", "does not exist"),
        ("nowhere://a", "nowhere"),
        ("memory://listed/notes", "exist"),
        ("memory://listed/a.pdf", "not a folder"),
    ):
        with pytest.raises(UsageError, match=told):
            open_source(given)


def test_the_local_engine_reads_urls(photos: Path, plain_onnx: Path, local: dict[str, bytes], tmp_path: Path) -> None:
    report = segx.segment(f"file://{photos}", tmp_path / "masks", model=plain_onnx, runtime=ONE_THREAD)
    assert (report.source, report.pipeline.failed) == (f"file://{photos}", 0)
    assert files_below(tmp_path / "masks") == {name: data for name, data in local.items() if name.endswith(".png")}


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("ObjectStoreFullError", "Failed to put object", "object store is full: Failed to put object"),
        ("OutOfDiskError", "Local disk is full", "object store is full: Local disk is full"),
        ("ActorDiedError", "ModuleNotFoundError: No module named 'segx'", "has no module segx"),
        ("ActorDiedError", "The actor is dead", "died 21 times"),
        ("ExecutionTimeoutError", "no progress", "Ray failed: ExecutionTimeoutError: no progress"),
    ],
)
def test_errors_of_ray_are_one_line(kind: str, text: str, told: str) -> None:
    error = _as_segx_error(type(kind, (Exception,), {})(f"{text}\nmore"))
    assert told in error.message
    assert "\n" not in error.message


def test_a_store_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    for url in (str(tmp_path / "out"), "memory://out"):
        store = pickle.loads(pickle.dumps(Store(url)))
        with store.locked():
            assert store.put("a/b.png", b"ours")
            assert store.put("a/b.png", b"mine", own=True)
            for taken in (False, True):  # if it appears while a run is under way, nothing says so
                assert not store.put("a/b.png", b"mine", taken=taken)
                with pytest.raises(SegxError, match="it existed before"):
                    store.put("a/b.png", b"other", taken=taken)
            assert store.read("a/b.png") == b"mine"
            for name in ("../c.png", "/c.png", "manifest.jsonl/c.png", "segx-predict.json", ""):
                with pytest.raises(SegxError, match="cannot write"):
                    store.put(name, b"")
            earlier = store.earlier(resume=False)
            assert {"a/b.png"} == {name for name in earlier.names if not name.startswith(".")}
            store.start(earlier, {"threshold": 0.5}, [{"value": 0}])
            entries = [Entry("a/b.jpg", "done", mask="a/b.png"), Entry("c.jpg", "done", mask="c.png")]
            store.write_part(3, entries)
            with pytest.raises(SegxError, match="holds the masks of an earlier run"):
                store.earlier(resume=False)
            earlier = store.earlier(resume=True)
            assert dict(earlier.masks) == {"a/b.jpg": ("a/b.png",)}
            assert ({*earlier.lost}, earlier.next_part) == ({"c.jpg"}, 4)
            store.start(earlier, {"threshold": 0.5}, [{"value": 0}])
            with pytest.raises(SegxError, match=r"with threshold 0\.5, and this run has 0\.4"):
                store.start(earlier, {"threshold": 0.4}, None)
            with pytest.raises(SegxError, match="already exists"):
                store.start(earlier, {"threshold": 0.5}, [{"value": 1}])
    (tmp_path / "out" / "folder.png").mkdir()
    with pytest.raises(SegxError, match="a folder has that name"):
        Store(str(tmp_path / "out")).put("folder.png", b"")


def test_a_store_that_knows_no_conditional_write_replaces_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://plain")
    pipe = store._system.pipe_file

    def refuse(path: str, data: bytes, **mode: str) -> None:
        if mode:
            raise OSError(22, "PreconditionFailed")
        pipe(path, data)

    monkeypatch.setattr(store._system, "pipe_file", refuse)
    assert store.put("a.png", b"ours")
    with pytest.raises(SegxError, match="it existed before"):
        store.put("a.png", b"other")
    assert store.read("a.png") == b"ours"


def test_a_part_leaves_masks_and_lines_or_neither(tmp_path: Path, photos: Path, plain_onnx: Path) -> None:
    store = Store(str(tmp_path / "out"))
    settings = {"engine": "ray"}
    items = [Item(name, photos / name) for name in ("00.png", "03.png", "06.png", "none.png")]
    items.append(Item("again/00.png", photos / "00.png", mask="00.png", fault=ImageError("twice", hint="once")))
    own: set[str] = set()
    taken = {"03.overlay.jpg", "06.png"}

    def run(number: int, **options: Any) -> Any:
        segment = PartSegmenter(
            store=store,
            settings=settings_file(settings).encode(),
            checkpoint=None,
            model=plain_onnx,
            runtime=ONE_THREAD,
            options=OutputOptions(overlay=True, **options),
        )
        try:
            return pickle.loads(segment({"part": [pickle.dumps((number, items, own, taken))]})["outcome"][0])
        finally:
            segment.close()

    assert "sees a different folder" in run(0).message
    store.start(store.earlier(resume=False), settings, None)
    for name in taken:
        store.write(name, b"mine")
    outcome = run(0)
    assert (outcome.report.images, outcome.report.failed) == (1, 4)
    assert "skipped again/00.png: twice; once" in outcome.warnings
    assert files_below(tmp_path / "out").keys() == {"00.png", "00.overlay.jpg", *taken}
    assert all(store.read(name) == b"mine" for name in taken)
    earlier = store.earlier(resume=True)
    assert (dict(earlier.masks), earlier.next_part) == ({"00.png": ("00.png",)}, 1)
    assert isinstance(run(1, on_error="stop"), SegxError)
    assert any(line.status == "failed" for line in read_manifest(tmp_path / "out/manifest.jsonl/part-000001.jsonl"))
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".part-000001.begun"]


def test_the_first_part_of_a_resumed_run_is_compared_with_the_training(
    tmp_path: Path, plain_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Path | None] = []

    def run(*_: Any, checkpoint: Path | None) -> None:
        judged.append(checkpoint)

    monkeypatch.setattr(PartSegmenter, "_run", run)
    store, settings = Store(str(tmp_path)), {"engine": "ray"}
    store.start(store.earlier(resume=False), settings, None)
    model = {"model": plain_onnx, "runtime": ONE_THREAD, "checkpoint": plain_onnx}
    segment = PartSegmenter(store=store, settings=settings_file(settings).encode(), first=7, **model)
    try:
        for number in (7, 8):
            segment._outcome(number, [], (), ())
    finally:
        segment.close()
    assert judged == [plain_onnx, None]


@pytest.mark.parametrize("engine", ["resumed", "tried again"])
def test_files_of_an_interrupted_part_are_replaced(
    tmp_path: Path, photos: Path, plain_onnx: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, settings = Store(str(tmp_path / "out")), {"engine": "ray"}
    store.start(store.earlier(resume=False), settings, None)
    store.write("03.png", b"mine")
    items = [Item(name, photos / name) for name in ("00.png", "03.png")]
    model = {"model": plain_onnx, "runtime": ONE_THREAD}
    segment = PartSegmenter(store=store, settings=settings_file(settings).encode(), checkpoint=None, **model)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    try:
        rows = [pickle.dumps((0, items, set(), {"03.png"}))]
        monkeypatch.setattr(Store, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            segment({"part": rows})
        monkeypatch.undo()
        store.write("00.png", b"of another machine, and so of other bytes")
        with pytest.raises(SegxError, match="holds the masks of an earlier run"):
            store.earlier(resume=False)
        earlier = store.earlier(resume=True)
        assert ({*earlier.begun}, earlier.next_part) == ({"00.png"}, 1)
        if engine == "resumed":
            rows = _parts(Source("photos", lambda: iter(items)), earlier, OutputOptions(), ModelSpec(), 1)
        (outcome,) = segment({"part": rows})["outcome"]
    finally:
        segment.close()
    assert (pickle.loads(outcome).report.images, pickle.loads(outcome).report.failed) == (1, 1)
    store.end_earlier(earlier)
    assert not store.earlier(resume=True).begun
    assert store.read("03.png") == b"mine"
    assert store.read("00.png").startswith(b"\x89PNG")


def test_images_are_shared_out_once() -> None:
    names = [f"{number:04}.jpg" for number in range(700)]
    items = [Item(name, Path(name)) for name in ("a.jpg", "b.png", "b.jpg", "c.jpg", "d.jpg", *names)]
    files = {"a.png", "c.png", "d.overlay.jpg", "0001.png", "0002.png"}
    masks = {"a.jpg": ("a.png",), "a.tif": ("b.png",)}
    earlier = Earlier(names=files, masks=masks, lost={"c.jpg"}, begun={"0002.png", "0003.png"}, next_part=7)
    source = Source("photos", lambda: iter([*items, Item("0000.png", Path("x"))]))
    parts = [pickle.loads(row) for row in _parts(source, earlier, OutputOptions(overlay=True), ModelSpec(), 2)]
    shared = [item for _, part, *_ in parts for item in part]
    faults = {item.name: item.fault.message for item in shared if item.fault}
    assert [*faults] == ["b.png", "b.jpg", "0000.png"]
    assert faults["b.png"] == "b.png is the mask of a.tif, which an earlier run segmented"
    assert "an image is given twice" in faults["0000.png"]
    assert [number for number, *_ in parts] == [*range(7, 7 + len(parts))]
    assert [item.name for item in shared] == ["b.png", "b.jpg", "c.jpg", "d.jpg", *names, "0000.png"]
    assert {len(part) for _, part, *_ in parts[:-1]} == {705 // 32}
    assert all(item.path.is_absolute() for item in shared if not item.fault)
    assert {path for *_, own, _ in parts for path in own} == {"c.png", "0002.png"}
    assert {path for *_, taken in parts for path in taken} == {"d.overlay.jpg", "0001.png"}


@pytest.mark.parametrize(
    ("nodes", "threads", "device", "pool"),
    [
        ([{"CPU": 4}, {"CPU": 4}], None, "cpu", (2, 4, 0)),
        ([{"CPU": 2}, {"CPU": 8}, {}], None, "cpu", (5, 2, 0)),
        ([{"CPU": 4}, {"CPU": 16}], 8, "cpu", (2, 8, 0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 8}], None, "cuda", (4, 4, 1)),
        ([{"CPU": 16, "GPU": 1}], 4, "cuda", (1, 4, 1)),
    ],
)
def test_actors_fit_the_machines(nodes: Any, threads: int | None, device: Any, pool: tuple[int, int, int]) -> None:
    made = _pool(nodes, threads, device)
    assert (made.actors, made.threads, made.gpus) == pool


def test_what_a_cluster_cannot_run_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no machine of the cluster has 8 CPUs"):
        _pool([{"CPU": 4}], 8, "cpu")
    with pytest.raises(UsageError, match="has a GPU"):
        _pool([{"CPU": 4}], None, "cuda")


def test_without_a_cluster_a_line_says_so_at_once(
    photos: Path, plain_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segx.ray._CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("", 0)) as silent, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        addresses = {
            f"127.0.0.1:{unused.getsockname()[1]}": "refused",
            f"127.0.0.1:{silent.getsockname()[1]}": "timed out",
            "none.invalid:6379": "none.invalid",
            "nonsense": "nonsense",
            "ray://127.0.0.1:1": "Ray Client",
        }
        for address, told in addresses.items():
            with pytest.raises(SegxError, match=told):
                segment_on_ray(photos, tmp_path / "masks", address=address, model=plain_onnx, runtime="fake")
    assert not (tmp_path / "masks").exists()


def test_wrong_usage_of_the_engine(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, told in (
        ((photos, "--ray-address", "auto"), "--ray-address has no effect without --engine ray"),
        ((photos, "--engine", "ray", "--no-fsync"), "--no-fsync has no effect with --engine ray"),
        (("clip.mp4", "--engine", "ray"), "clip.mp4 is a video"),
        ((photos, "--engine", "spark"), "is not one of 'local', 'ray'"),
        ((photos, "--output", "s3://bucket/masks"), "s3://bucket/masks is a URL"),
        ((photos, "--engine", "ray", "--output", photos), "the masks would be among the images"),
    ):
        output = () if "--output" in arguments else ("--output", "masks")
        done = run_segx("predict", *arguments, *output, "--runtime", "fake", cwd=tmp_path)
        assert (done.returncode, told in " ".join(done.stderr.split())) == (2, True), done.stderr
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeUnavailable, match="cannot import Ray") as raised:
        segment_on_ray(photos, tmp_path / "masks", runtime="fake")
    assert raised.value.hint == "pip install 'segx[ray]'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two Ray nodes on this machine, of one CPU each, in which the fake runtime takes its time."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRIPT_VARIABLE, json.dumps({"seconds_per_image": 0.1}))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
        nodes.add_node(num_cpus=1, **memory)
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
def test_a_killed_node_loses_nothing(
    cluster: Any, photos: Path, plain_onnx: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    options = ("--model", plain_onnx, "--runtime", "fake", "--engine", "ray", "--ray-address", cluster.address)
    command = ["predict", photos, "--output", "masks", "--overlay", "--probabilities", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "segx", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    parts = tmp_path / "masks" / "manifest.jsonl"
    while not list(parts.glob("part-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    told = process.communicate()
    assert process.returncode == 0, told
    assert "60 of 60 images" in told[0]
    assert "raylet" not in told[0] + told[1]
    lines = [line for part in parts.iterdir() for line in read_manifest(part)]
    assert sorted(line.input for line in lines) == sorted(name for name in local if name.endswith(".png"))
    assert {line.status for line in lines} == {"done"}
    assert files_below(tmp_path / "masks") == local

    # What is left of the cluster, with URLs, a file of the user's, a damaged image, and a mask that was deleted.
    output, source = tmp_path / "more", tmp_path / "photos"
    shutil.copytree(photos / "more", source)
    (source / "damaged.jpg").write_bytes(b"no image")
    output.mkdir()
    (output / "01.png").write_bytes(b"mine")
    command = ["predict", f"file://{source}", "--output", f"file://{output}", *options]
    done = run_segx(*command, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "39 of 41 images" in done.stdout
    for reason in ("01.png: it existed before", "damaged.jpg is not an image", f"file://{output}/manifest.jsonl/*"):
        assert reason in " ".join(done.stderr.split())
    assert (output / "01.png").read_bytes() == b"mine"
    (output / "01.png").unlink()
    (output / "02.png").unlink()
    (source / "damaged.jpg").unlink()
    assert run_segx(*command, cwd=tmp_path).returncode == 1
    again = run_segx(*command, "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 images" in again.stdout
    assert "38 images done by an earlier run" in again.stdout
    wanted = {name.removeprefix("more/"): data for name, data in local.items() if name.startswith("more/")}
    assert files_below(output) == {name: data for name, data in wanted.items() if name[2:] == ".png"}
    local_engine = run_segx("predict", f"file://{source}", "--output", output, *options[:4], "--resume", cwd=tmp_path)
    assert "were made with engine ray, and this run has local" in local_engine.stderr
