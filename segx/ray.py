"""Segment images on a Ray cluster: a callable for ``map_batches``, and what runs ``segx predict --engine ray``."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segx import __version__
from segx.errors import (
    ArtifactError,
    InferenceError,
    OutOfMemory,
    OutputError,
    RuntimeUnavailable,
    SegxError,
    UsageError,
    first_line,
)
from segx.export.artifact import read_artifact
from segx.export.variants import form_of
from segx.masks.image_io import Remarks, not_empty
from segx.model.checkpoint import checkpoint_digest, model_spec
from segx.model.spec import ModelSpec
from segx.predict.api import PredictReport, prepare, status_teller
from segx.predict.engine import Engine, EngineTask
from segx.predict.manifest import RAY, Entry, settings_file
from segx.predict.options import AUTO, OutputOptions, RuntimeRequest
from segx.predict.output import SETTINGS_NAME, TAKEN, Write, class_masks, files_of, legend, pending, refusal
from segx.predict.pipeline import Pipeline, PipelineReport
from segx.predict.sources import VIDEO_EXTENSIONS, Item, Source, open_source, read_url, wrong_entry
from segx.predict.store import Earlier, Store
from segx.results.types import STAGES
from segx.runtimes import Device, RuntimeOptions, runtime_info
from segx.system import machine
from segx.system.processes import Workers
from segx.system.progress import SILENT, Progress
from segx.system.silence import messages_dropped

_LOCAL_ADDRESS = "local"
_CONNECT_TIMEOUT_S = 5.0
# How an HTTP/2 client begins, with empty settings; every gRPC server answers with a frame of type 4, its own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
# Parts that each actor gets: a node that is lost costs one of them, and at the end actors wait for the last ones.
_PARTS_PER_ACTOR = 16
_MIN_PART, _MAX_PART = 16, 512
# How often a part is tried again whose actor dies, as by its machine or by an image that crashes OpenCV. While Ray
# waits to learn that a machine is lost, it spends a few of them.
_RETRIES = 20
_DEFAULTS = OutputOptions()
# Columns of a segmented batch -> what they are in a manifest.
_FIELDS = {"area": "mask_area", "status": "status", "error": "error"}


class Segmenter:
    """Segment the images of a batch; a callable class for ``ray.data.Dataset.map_batches``.

    A batch is a dictionary of columns. An image is in the column ``bytes``, as ``ray.data.read_binary_files`` returns
    it, or at the path or URL in the column ``uri``. The result has all columns, and

    - ``mask``: the bytes of the PNG file that ``segx predict`` writes; of a multilabel model ``masks``, by class;
    - ``overlay`` and ``probabilities``: the bytes of those files, if ``options`` ask for them;
    - ``area``: pixels of the mask that are not background;
    - ``status``: ``done`` or ``failed``, and why in ``error``. What is missing is None.

    The runtime is a process of its own, which is started by the first call and restarted after a crash; images are
    decoded and masks encoded while it runs.

    Args:
        model: the file that the variant runs, under the same path on every machine.
        runtime: a runtime with its precision, as ``openvino-cpu:int8``, or a request for one with a batch size (else 1)
            and threads (else the CPUs of the Ray actor, or all usable cores). A batch of ``map_batches`` should have
            many more images than a call of the runtime.
        spec: the model's description; None for the one in the file.
        options: what to write; ``resume`` and ``fsync`` have no effect.
        sha256: digest that the file must have, and ``version`` that segx must have; see ``arguments``.

    Raises:
        UsageError: an argument is not allowed.
    """

    def __init__(
        self,
        model: Path | str,
        runtime: RuntimeRequest | str,
        *,
        spec: ModelSpec | None = None,
        options: OutputOptions = _DEFAULTS,
        sha256: str = "",
        version: str = __version__,
    ) -> None:
        request = RuntimeRequest.of(runtime)
        if request.runtime == AUTO or request.bench:
            hint = "name it with its precision, as openvino-cpu:int8, and leave bench out"
            raise UsageError("a Segmenter does not choose its runtime", hint=hint)
        self.variant, self.batch_size = request.variant, request.batch_size or 1
        self.model, self.options = Path(model), options
        self._spec, self._threads, self._sha256, self._version = spec, request.threads, sha256, version
        self._engine: Engine | None = None
        self._task: EngineTask | None = None

    @classmethod
    def arguments(cls, model: Path | str, runtime: RuntimeRequest | str, **others: Any) -> dict[str, Any]:
        """Return the arguments with this machine's digest of the model and version of segx, for workers to compare.

        Raises:
            CheckpointError: the file is missing or unreadable.
        """
        path = Path(model).absolute()
        return {
            "model": str(path),
            "runtime": runtime,
            "sha256": checkpoint_digest(path),
            "version": __version__,
            **others,
        }

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Segment a batch.

        Raises:
            UsageError: there is no image in the columns.
            ImageError: with ``on_error="stop"``, the first image that cannot be segmented.
            RuntimeUnavailable: this machine has another version of segx, or lacks what the runtime needs.
            ArtifactError, CheckpointError: the model is missing here, is another one, or is not what the variant runs.
            InferenceError: the runtime fails again and again.
        """
        items = _items(batch)
        kept = _Kept()
        task = self._started()
        self._run(items, kept)
        entries = [kept.lines[item.name] for item in items]
        columns = self._files(items, kept, task.spec)
        columns |= {name: [getattr(entry, field) for entry in entries] for name, field in _FIELDS.items()}
        return {**batch, **{name: _column(values) for name, values in columns.items()}}

    def _files(self, items: Sequence[Item], kept: _Kept, spec: ModelSpec) -> dict[str, list[Any]]:
        """Return the columns of an image's files."""
        others = [name for name in ("overlay", "probabilities") if getattr(self.options, name)]
        files = [files_of(item, self.options, spec) for item in items]
        columns: dict[str, list[Any]] = {
            name: [kept.files.get(paths[number]) for paths in files] for number, name in enumerate(others)
        }
        if spec.multilabel:
            paths = [class_masks(item.mask, self.options.class_names, spec) for item in items]
            columns["masks"] = [{name: kept.files.get(path) for name, path in each.items()} for each in paths]
        else:
            columns["mask"] = [kept.files.get(item.mask) for item in items]
        return columns

    def _run(self, items: Sequence[Item], target: _Kept, *, checkpoint: Path | None = None) -> PipelineReport:
        task = self._started()
        assert self._engine
        target.remarks = Remarks(task.spec.white_level)
        pipeline = Pipeline(
            items=items,
            together=target.together,
            append=target.append,
            engine=self._engine,
            task=task,
            outputs=self.options,
            checkpoint=checkpoint,
            remarks=target.remarks,
            warn=target.warnings.append,
        )
        return pipeline.run()

    def _started(self) -> EngineTask:
        """Check what this machine has, and start the engine."""
        if self._task is None:
            task = self._checked_task()
            self._engine = Engine(Workers(threads=task.options.threads), self.variant.runtime)
            self._task = task
        return self._task

    def _checked_task(self) -> EngineTask:
        here = platform.node()
        if __version__ != self._version:
            raise RuntimeUnavailable(
                f"{here} has segx {__version__}, but the driver has {self._version}",
                hint="install the same version of segx on every machine of the cluster",
            )
        if not self.model.exists():
            raise ArtifactError(
                f"{here} has no file {self.model}", hint="put it there on every machine, or on storage that all share"
            )
        digest = checkpoint_digest(self.model)
        if self._sha256 not in ("", digest):
            raise ArtifactError(
                f"{self.model} on {here} has the digest {digest[:12]}…, but the driver's has {self._sha256[:12]}…",
                hint="copy the driver's file to every machine of the cluster",
            )
        info, fixed_batch, spec = runtime_info(self.variant.runtime), None, self._spec
        if info.takes == "checkpoint":
            spec = spec or model_spec(self.model)
        else:
            artifact = read_artifact(self.model).require_logits()
            fixed_batch, spec = artifact.batch_size, spec or artifact.spec
            form = form_of(self.variant)
            runs = next((each for each in ("int8", "fp16") if form.startswith(each)), "fp32")
            if artifact.precision != runs:
                raise ArtifactError(
                    f"{self.model} is {artifact.precision}, and {self.variant} runs a file in {runs}",
                    hint=f"make one: segx export --precision {runs}",
                )
        self.options.check_model(spec)
        if fixed_batch not in (None, self.batch_size):
            hint = f"give a RuntimeRequest with batch_size={fixed_batch}"
            raise UsageError(f"{self.model} only takes batches of {fixed_batch}", hint=hint)
        if self.options.class_names:
            legend(self.options.class_names, spec)
        threads = self._threads or _cpus_of_actor() or machine.usable_cores()
        options = RuntimeOptions(threads=threads, precision=self.variant.precision)
        return EngineTask(
            model=self.model,
            spec=spec,
            options=options,
            batch_size=self.batch_size,
            fills_batches=fixed_batch is not None,
            sha256=digest,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_engine": None, "_task": None}

    def close(self) -> None:
        """End the runtime's process; the next call starts another one."""
        if self._engine:
            self._engine.close()
        self._engine = self._task = None


def _cpus_of_actor() -> int:
    """Return how many CPUs Ray has assigned to this actor; 0 outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return max(1, int(cpus)) if cpus else 0


def _column(values: list[Any]) -> Any:
    """Return a column of Python objects: NumPy would cut null bytes off the end of bytes."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _items(batch: Mapping[str, Any]) -> list[Item]:
    """Return the images of a batch, with masks named by their rows."""
    if not isinstance(batch, Mapping) or not {"bytes", "uri"} & batch.keys():
        found = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise UsageError(f"a batch has no column bytes or uri: {found}", hint='use batch_format="numpy", the default')
    rows = len(next(iter(batch.values())))
    nothing = [None] * rows
    contents, places = batch.get("bytes", nothing), batch.get("uri", batch.get("path", nothing))
    return [_item(row, content, place) for row, (content, place) in enumerate(zip(contents, places, strict=True))]


def _item(row: int, content: Any, place: Any) -> Item:
    shown = place if isinstance(place, str) else "image"
    item = Item(f"{shown} (row {row})", Path(), f"{row}.png")
    if isinstance(content, (bytes, bytearray, memoryview)):
        return replace(item, read=partial(not_empty, bytes(content), item.name))
    if content is None and isinstance(place, str):
        return replace(item, read=partial(read_url, place, item.name))
    found = type(place if content is None else content).__name__
    return replace(item, fault=wrong_entry(item.name, f"is neither bytes nor a path or URL, but {found}"))


class _Kept:
    """What a pipeline writes, in memory: the files by path, and the lines by image."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lines: dict[str, Entry] = {}
        self.remarks, self.warnings = Remarks(), list[str]()

    def together(self, name: str) -> AbstractContextManager[Write]:  # noqa: ARG002 - files in memory need no image's name
        """Give what keeps the files of an image."""
        return contextlib.nullcontext(self.files.__setitem__)

    def append(self, entry: Entry) -> None:
        """Keep a line."""
        self.lines[entry.input] = entry


# segx predict --engine ray


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What became of a part."""

    report: PipelineReport
    remarks: Remarks
    warnings: Sequence[str]


class _Part(_Kept):
    """The files of a part of the images, in a store, and their lines; see ``Store.put`` for ``own`` and ``taken``."""

    def __init__(self, store: Store, own: Collection[str], taken: Collection[str]) -> None:
        super().__init__()
        self._store, self.own, self._taken = store, own, taken

    def together(self, name: str) -> AbstractContextManager[Write]:  # noqa: ARG002 - as _Kept
        """Give what writes the files of an image, of which none is left if the block fails."""
        return self._store.together(self.own, self._taken)


class PartSegmenter(Segmenter):
    """Segment parts of the images of a run, each a pickled row; write masks and a part of the manifest to a store.

    The driver has written ``settings`` there. The images of the run's first part, which has the number ``first``, are
    compared with those of the training of ``checkpoint``, if the actor has that file.
    """

    def __init__(
        self, store: Store, settings: bytes, checkpoint: Path | None, *, first: int = 0, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._store, self._settings, self._checkpoint, self._first = store, settings, checkpoint, first

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pickled ``_Outcome``, or what ended the run, for each part."""
        return {"outcome": _column([pickle.dumps(self._outcome(*pickle.loads(row))) for row in batch["part"]])}

    def _checked_task(self) -> EngineTask:
        task = super()._checked_task()
        with contextlib.suppress(OutputError):
            if self._store.read(SETTINGS_NAME) == self._settings:
                return task
        raise OutputError(
            f"{platform.node()} sees a different folder {self._store.url} than the driver",
            hint="choose one on storage that all machines of the cluster share",
        )

    def _outcome(
        self, number: int, items: Sequence[Item], own: Collection[str], taken: Collection[str]
    ) -> _Outcome | SegxError:
        part = _Part(self._store, own, taken)
        judged = number == self._first and self._checkpoint and self._checkpoint.exists()
        try:
            spec = self._started().spec
            names = {path for item in items if not item.fault for path in files_of(item, self.options, spec)}
            part.own = self._store.begin(number, names.difference(taken), own)
            report = self._run(items, part, checkpoint=self._checkpoint if judged else None)
            self._store.write_part(number, part.lines.values())
            self._store.end(number)
        except SegxError as error:
            if part.lines:
                with contextlib.suppress(OutputError):
                    self._store.write_part(number, part.lines.values())
            return error
        return _Outcome(report=report, remarks=part.remarks, warnings=part.warnings)


def segment_on_ray(
    source: Path | str,
    output: Path | str,
    *,
    address: str = "auto",
    checkpoint: Path | str | None = None,
    model: Path | str | None = None,
    spec: ModelSpec | None = None,
    runtime: RuntimeRequest | str = AUTO,
    threshold: float | None = None,
    options: OutputOptions = _DEFAULTS,
    progress: Progress = SILENT,
) -> PredictReport:
    """Segment images on a Ray cluster; see ``segx.segment``, whose arguments have the same meaning, apart from these.

    ``source`` is no video, ``output`` may be a URL that fsspec writes to, and paths are on storage that all machines
    share. ``address`` is that of the cluster: ``host:port``, ``auto`` for the one that this machine belongs to, or
    ``local`` to start one here. A runtime ``auto`` is chosen on this machine. The request's threads are also the CPUs
    that an actor takes of its machine; None for those of the smallest one.

    Raises:
        RuntimeUnavailable: Ray is missing, there is no cluster at the address, or a worker has another version of segx.
        SegxError: as in ``segx.segment``.
    """
    request = RuntimeRequest.of(runtime)
    if Path(source).suffix.lower() in VIDEO_EXTENSIONS:
        raise UsageError(f"{source} is a video", hint="leave --engine ray out, or give its frames as images")
    store = Store(str(output))
    images = open_source(str(source), exclude=store.folder)
    if images.name.rstrip("/") == store.url.rstrip("/"):
        raise UsageError(f"the masks would be among the images of {images.name}", hint="choose another folder")
    with messages_dropped(), _connected(address, progress) as ray, _silent_data(ray), store.locked():
        earlier = store.earlier(resume=options.resume)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        device = request.device
        if request.runtime != AUTO:
            device = runtime_info(request.runtime).device
        elif device is None:
            on_gpus = any(node.get("GPU") for node in nodes) and not machine.cuda_problem()  # auto is chosen here
            device = "cuda" if on_gpus else "cpu"
        pool = _pool(nodes, request.threads, device)
        job = prepare(
            replace(request, device=device),
            source=str(source),
            checkpoint=checkpoint,
            model=model,
            spec=spec,
            threshold=threshold,
            options=options,
            before=earlier.settings,
            workers=Workers(threads=pool.threads),
            threads=pool.threads,
            progress=progress,
        )
        classes = legend(options.class_names, job.spec) if options.class_names else None
        settings = {**job.settings, "engine": RAY}
        store.start(earlier, settings, classes)
        parts = _parts(images, earlier, options, job.spec, pool.actors)
        tally, tell = _Tally(job.spec, progress), status_teller(progress, images, len(earlier.masks))
        arguments = Segmenter.arguments(
            job.task.model,
            RuntimeRequest(str(job.choice.variant), batch_size=job.choice.batch_size, threads=pool.threads),
            spec=job.spec,
            options=options,
        )
        if parts:
            if ray.available_resources().get("CPU", 0) < pool.threads:
                progress.warn(f"other jobs use the CPUs of the cluster: waiting for {pool.threads} on one machine")
            progress.say(f"actors: {pool.actors}, threads of each: {pool.threads}, parts: {len(parts)}")
            checkpoint = job.files.checkpoint and job.files.checkpoint.absolute()
            arguments |= {"store": store, "settings": settings_file(settings).encode(), "checkpoint": checkpoint}
            arguments["first"] = earlier.next_part
            for outcome in _outcomes(ray, parts, pool, arguments):
                tally.add(outcome)
                tell(tally.report)
        store.end_earlier(earlier)
    return job.report(images, str(output), len(earlier.masks), tally.remarks, tally.report, progress)


@contextlib.contextmanager
def _connected(address: str, progress: Progress) -> Iterator[Any]:
    """Connect to a cluster, without sending usage statistics or showing what Ray logs.

    Raises:
        RuntimeUnavailable: Ray is missing, or there is no cluster at the address.
        UsageError: the process is connected to another one already.
    """
    try:
        import ray
        import ray._private.worker as ray_worker
        import ray.data
    except ImportError as error:
        raise RuntimeUnavailable(f"cannot import Ray: {first_line(error)}", hint="pip install 'segx[ray]'") from error
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address != "auto" and (address == _LOCAL_ADDRESS or _reachable(address) != connected):
            hint = "call ray.shutdown() first, or leave the address out"
            raise UsageError(f"Ray is connected to {connected} already, and the address is {address}", hint=hint)
        yield ray
        return
    # No option keeps it from printing to stdout that a machine was lost, at the end of the program too.
    ray_worker._worker_logs_enabled = False  # noqa: SLF001
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == _LOCAL_ADDRESS:
        options |= {"include_dashboard": False, "num_cpus": machine.usable_cores()}
    else:
        options["address"] = _reachable(address)
    progress.say(f"connecting to Ray at {options['address']}")
    handler = signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger("ray")
    level = logger.level
    try:
        ray.init(**options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the program silently
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "run this on a machine of the cluster, with its versions of Python and Ray"
        raise RuntimeUnavailable(f"cannot connect to Ray at {options['address']}: {reason}", hint=hint) from error
    try:
        yield ray
    finally:
        ray.shutdown()
        logger.setLevel(level)


@contextlib.contextmanager
def _silent_data(ray: Any) -> Iterator[None]:
    """Let Ray Data show no progress and log nothing, and raise the errors of actors as they are."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    changes = {"enable_progress_bars": False, "print_on_execution_start": False, "raise_original_map_exception": True}
    before, level = {name: getattr(context, name) for name in changes}, logger.level
    try:
        vars(context).update(changes)
        logger.setLevel(logging.CRITICAL + 1)  # the errors are raised too
        yield
    finally:
        vars(context).update(before)
        logger.setLevel(level)


def _reachable(address: str) -> str:
    """Return host and port of a cluster after checking that something like Ray answers: Ray waits for minutes."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    hint = "start one with `ray start --head`, or give --ray-address local to start one for this command"
    if address.startswith("ray://"):
        raise UsageError(f"{address} is an address of Ray Client", hint="run this on a machine of the cluster")
    try:
        found = canonicalize_bootstrap_address_or_die(address)
        host, _, port = found.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_PREFACE)
                with connection.makefile("rb") as answer:
                    head = answer.read(4)
                if head[3:] != b"\x04":
                    raise ConnectionError("what listens there is not Ray")
    except (OSError, ValueError, OverflowError) as error:
        reason = first_line(error) if address != "auto" or "Could not find" not in str(error) else "none runs here"
        raise RuntimeUnavailable(f"no Ray cluster at {address}: {reason}", hint=hint) from error
    return str(found)


@dataclass(frozen=True)
class _Pool:
    """How many actors there are, and what each takes."""

    actors: int
    threads: int
    gpus: int


def _pool(nodes: Sequence[Mapping[str, float]], threads: int | None, device: Device) -> _Pool:
    """Return the actors that fit the machines: one for each, or for each GPU, unless ``threads`` makes them smaller.

    Raises:
        UsageError: no machine has so many CPUs, or a GPU.
    """
    gpus = int(device == "cuda")
    machines = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    machines = [(cpus, held) for cpus, held in machines if cpus and (held or not gpus)]
    if not machines:
        lacking = "GPU" if gpus else "CPU"
        raise UsageError(f"no machine of the cluster has a {lacking}", hint="add one, or choose another --device")
    threads = threads or min(max(1, cpus // held if gpus else cpus) for cpus, held in machines)
    actors = sum(min(cpus // threads, held) if gpus else cpus // threads for cpus, held in machines)
    if not actors:
        most = max(cpus for cpus, _ in machines)
        raise UsageError(f"no machine of the cluster has {threads} CPUs", hint=f"give --threads {most} or fewer")
    return _Pool(actors, threads, gpus)


def _parts(images: Source, earlier: Earlier, options: OutputOptions, spec: ModelSpec, actors: int) -> list[bytes]:
    """Return the images to segment as the rows of ``PartSegmenter``."""
    items, given, own, taken = [], set[str](), set[str](), set[str]()
    for item in pending(images, earlier.masks, options, spec):
        paths = files_of(item, options, spec)
        fault = item.fault or (refusal(paths[-1], TAKEN) if paths[-1] in given else None)
        if fault:
            items.append(replace(item, fault=fault))
            continue
        given.add(paths[-1])
        existing = {path for path in paths if path in earlier.names}
        replaced = existing if item.name in earlier.lost else existing.intersection(earlier.begun)
        own |= replaced
        taken |= existing - replaced
        items.append(item if item.read else replace(item, path=item.path.absolute()))
    size = min(max(len(items) // (_PARTS_PER_ACTOR * actors), _MIN_PART), _MAX_PART)
    parts = []
    for number, first in enumerate(range(0, len(items), size), earlier.next_part):
        part = items[first : first + size]
        here = {path for item in part if not item.fault for path in files_of(item, options, spec)}
        parts.append(pickle.dumps((number, part, here & own, here & taken)))
    return parts


def _outcomes(ray: Any, parts: list[bytes], pool: _Pool, arguments: Mapping[str, Any]) -> Iterator[_Outcome]:
    """Run the parts and yield what became of each as it ends; actors and parts that are lost are started again."""
    try:
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # of max_task_retries, until 2.64
            segmented = rows.map_batches(
                PartSegmenter,
                fn_constructor_kwargs=dict(arguments),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.actors, initial_size=pool.actors),
                num_cpus=pool.threads,
                num_gpus=pool.gpus or None,
                max_task_retries=_RETRIES,
            )
        for row in segmented.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, SegxError):
                raise outcome
            yield outcome
    except SegxError:
        raise
    except Exception as error:
        raise _as_segx_error(error) from error


def _as_segx_error(error: Exception) -> SegxError:
    text = str(error)
    for lacking in ("segx", "segx.ray"):
        if f"No module named '{lacking}'" in text:
            hint = "install the version of this machine on every machine of the cluster"
            return RuntimeUnavailable(f"a machine of the cluster has no module {lacking}", hint=hint)
    if "ObjectStoreFull" in type(error).__name__ + text or "OutOfDisk" in type(error).__name__ + text:
        hint = "end the jobs that fill it, or start Ray with a larger --object-store-memory; then --resume"
        return OutOfMemory(f"Ray's object store is full: {first_line(error)}", hint=hint)
    hint = "finished masks are kept: --resume continues; Ray's logs are in /tmp/ray/session_latest/logs"
    if type(error).__name__ in ("ActorDiedError", "ActorUnavailableError"):
        return InferenceError(f"the actors that ran a part of the images died {_RETRIES + 1} times", hint=hint)
    cause = getattr(error, "cause", None) or error
    return InferenceError(f"Ray failed: {type(cause).__name__}: {first_line(cause)}", hint=hint)


_NOTHING = PipelineReport(
    images=0, failed=0, first_failure="", blank=0, doubt="", seconds=0.0, ready_s=0.0, first_mask_s=None,
    stages=dict.fromkeys(STAGES, 0.0), facts={}, restarts=0, loaders=0, writers=0,
)  # fmt: skip


class _Tally:
    """The report of a run, added up from those of its parts."""

    def __init__(self, spec: ModelSpec, progress: Progress) -> None:
        self.remarks = Remarks(spec.white_level)
        self.report = _NOTHING
        self._progress = progress
        self._begun = time.perf_counter()
        self._told = set[str]()

    def add(self, outcome: _Outcome) -> None:
        """Add a part that ended just now."""
        all_, part, now = self.report, outcome.report, time.perf_counter() - self._begun
        began = now - part.seconds  # by this machine's clock
        first_mask_s = None if part.first_mask_s is None else began + part.first_mask_s
        self.report = PipelineReport(
            images=all_.images + part.images,
            failed=all_.failed + part.failed,
            first_failure=all_.first_failure or part.first_failure,
            blank=all_.blank + part.blank,
            doubt=all_.doubt or part.doubt,
            seconds=now,
            ready_s=all_.ready_s or max(began + part.ready_s, 1e-9),
            first_mask_s=first_mask_s if all_.first_mask_s is None else all_.first_mask_s,
            stages={name: seconds + part.stages[name] for name, seconds in all_.stages.items()},
            facts=part.facts,
            restarts=all_.restarts + part.restarts,
            loaders=max(all_.loaders, part.loaders),
            writers=max(all_.writers, part.writers),
        )
        self.remarks.merge(outcome.remarks)
        for warning in outcome.warnings:
            if warning not in self._told:
                self._progress.warn(warning)
        self._told |= {all_.doubt, part.doubt}
