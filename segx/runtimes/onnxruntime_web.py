"""ONNX Runtime Web in a headless Chromium or Chrome: WebAssembly on the CPU, or WebGPU.

The page gets its batches from a server in this process and times each run itself, so that no time includes what is
carried over loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from segx.errors import ArtifactError, InferenceError, OutOfMemory, RuntimeUnavailable, lacks_memory
from segx.model.spec import PRECISION_KEY, ModelSpec
from segx.runtimes.base import SMALLER, FloatArray, Precision, RuntimeOptions
from segx.system.memory import HostMemoryMeter, oom_kills
from segx.system.processes import WorkerDied
from segx.web import engine_files, engine_version, static_files
from segx.web.browser import Browser, browser_version, find_browser
from segx.web.server import Request, Response, Route, Server, json_response

Backend = Literal["wasm", "webgpu"]

_START_TIMEOUT_S = 120.0
_POLL_S = 0.1
_MAX_BODY_BYTES = 1 << 32  # of an answer; WebAssembly has no more memory than that
_MOST_METADATA_BYTES = 1 << 16
# What Chromium needs on Linux to offer WebGPU.
_WEBGPU_FLAGS = ("--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-angle=vulkan")
# GPUs under /dev: by the kernel's own drivers, by NVIDIA's, and in WSL.
_GPU_DEVICES = ("dri/renderD*", "nvidia[0-9]*", "dxg")


class _Page:
    """The page bench.html in a browser of its own. It answers in turns: see static/bench.js."""

    def __init__(self, backend: Backend, task: Mapping[str, object], model: Path | None = None) -> None:
        """Open the page and wait for its first answer, ``first``; raise as ``ask``.

        Without a model the page only looks for an adapter.
        """
        self._batches: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        folder = f"/{secrets.token_urlsafe()}"  # a path that other users of this machine cannot guess
        files = {**static_files(), **engine_files(), **({"/model.onnx": model} if model else {})}
        routes = {
            f"{folder}/task": Route(lambda _: json_response({"backend": backend, **task})),
            f"{folder}/next": Route(self._next, max_body_bytes=_MAX_BODY_BYTES, waits=True),
            f"{folder}/alive": Route(self._wait_until_gone),
        }
        flags = _WEBGPU_FLAGS if backend == "webgpu" and sys.platform == "linux" else ()
        self._oom_kills = oom_kills()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._batches.put, b"")  # _next may be waiting for a batch
            server = on_failure.enter_context(Server({folder + name: file for name, file in files.items()}, routes))
            self._browser = on_failure.enter_context(Browser(f"{server.url[:-1]}{folder}/bench.html", flags))
            self.first = self._first_answer()
            self._resources = on_failure.pop_all()

    def ask(self, batch: bytes = b"") -> Request:
        """Give the page its next batch, or nothing where it waits for leave to go on; return its answer.

        Raises:
            RuntimeUnavailable: there is no adapter.
            OutOfMemory, InferenceError: the engine failed.
            WorkerDied: the page is gone.
        """
        self._batches.put(batch)
        return self._checked(self._answers.get())

    def meter(self) -> HostMemoryMeter:
        """Return a meter of the browser's memory."""
        return HostMemoryMeter(self._browser.processes())

    def close(self) -> None:
        """End the browser, then the server."""
        self._resources.close()

    def _first_answer(self) -> Request:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if reason := self._browser.ended:
                raise RuntimeUnavailable(f"the browser ended at once: {reason}", hint=self._browser.trial)
            with contextlib.suppress(queue.Empty):
                return self._checked(self._answers.get(timeout=_POLL_S))
        raise RuntimeUnavailable(
            f"the browser did not open the page within {_START_TIMEOUT_S:g} s", hint=self._browser.trial
        )

    def _checked(self, answer: Request | None) -> Request:
        if answer is None:
            what = f"the browser ended: {self._browser.ended}" if self._browser.ended else "the page crashed"
            if oom_kills() > self._oom_kills:
                raise OutOfMemory(f"{what}, because the system ran out of memory", hint=SMALLER)
            raise WorkerDied(what, hint=f"{SMALLER} if memory may be short, or another browser")
        if text := answer.query.get("error"):
            reason = " ".join(text.rpartition("ERROR_MESSAGE: ")[2].split())[:200]
            if lacks_memory(RuntimeError(text)):
                raise OutOfMemory(f"WebAssembly could not allocate memory: {reason}", hint=SMALLER)
            raise InferenceError(
                f"ONNX Runtime Web failed: {reason}",
                hint="see whether onnxruntime-cpu runs the file, or export it again",
            )
        if missing := answer.query.get("missing"):
            raise _no_gpu(missing)
        return answer

    def _next(self, request: Request) -> Response:
        self._answers.put(request)
        return Response(self._batches.get())

    def _wait_until_gone(self, request: Request) -> Response:
        request.wait_until_gone()
        self._answers.put(None)
        return Response()


class _OnnxRuntimeWeb:
    """The page, its facts and inference, shared by both backends."""

    def __init__(self, name: str, backend: Backend, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        self.name = name
        versions = _OnnxRuntimeWeb.check(options)
        if (computes_in := _precision_of(path)) != (asked := options.precision):
            raise ArtifactError(f"{path} computes in {computes_in}, not in {asked}", hint=f"use the {asked} file")
        task = {"threads": options.threads, "image": spec.input_shape, "memory_limit": options.memory_limit_bytes}
        self._turn = threading.Lock()
        self._page = _Page(backend, task, path)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._page.close)
            self.memory = self._page.meter()
            self.facts: Mapping[str, str] = {
                **json.loads(self._page.ask().query["facts"]),
                **versions,
                "time": "session.run in the page",
                "memory": "all processes of the browser, above that of the page with the engine",
            }
            if (threads := self.facts["threads"]) != str(options.threads) and backend == "wasm":
                raise RuntimeUnavailable(
                    f"the page has {threads} of {options.threads} threads, "
                    f"cross-origin isolated: {self.facts['cross-origin isolated']}",
                    hint=f"use --threads {threads}, or another browser",
                )
            on_failure.pop_all()

    def infer(self, batch: FloatArray) -> FloatArray:
        """See ``Runtime.infer``."""
        return self.infer_timed(batch)[0]

    def infer_timed(self, batch: FloatArray) -> tuple[FloatArray, float]:
        """See ``TimesItself.infer_timed``."""
        with self._turn:
            answer = self._page.ask(batch.tobytes())
        shape = [int(length) for length in answer.query["shape"].split(",")]
        logits = np.frombuffer(answer.body, dtype=np.float32).reshape(shape)
        return logits.copy(), float(answer.query["seconds"])  # the buffer is read-only

    def close(self) -> None:
        """See ``Runtime.close``."""
        self._page.close()

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions of the engine and the browser.

        Raises:
            RuntimeUnavailable: one of them is missing.
        """
        return {"onnxruntime-web": engine_version(), "browser": browser_version(find_browser())}


def _require_gpu() -> None:
    """Raise RuntimeUnavailable, without starting a browser, if Linux knows no GPU."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in _GPU_DEVICES):
        raise _no_gpu("this machine has no GPU")


def _no_gpu(reason: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(reason, hint="use onnxruntime-web")


def _precision_of(path: Path) -> str:
    """Return the precision in the metadata of an ONNX file, which come after its graph."""
    with path.open("rb") as file:
        file.seek(-min(_MOST_METADATA_BYTES, path.stat().st_size), os.SEEK_END)
        found = re.search(f"{PRECISION_KEY}\x12.({'|'.join(get_args(Precision))})".encode(), file.read(), re.DOTALL)
    return found[1].decode() if found else "fp32"


class OnnxRuntimeWeb(_OnnxRuntimeWeb):
    """WebAssembly with threads and SIMD."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        super().__init__("onnxruntime-web", "wasm", path, spec, options)


class OnnxRuntimeWebGpu(_OnnxRuntimeWeb):
    """WebGPU; a run includes the copies to and from the GPU."""

    def __init__(self, path: Path, spec: ModelSpec, options: RuntimeOptions) -> None:
        _require_gpu()
        super().__init__("onnxruntime-webgpu", "webgpu", path, spec, options)

    @staticmethod
    def check(options: RuntimeOptions) -> dict[str, str]:
        """Return the versions, and the GPU that the browser offers.

        Raises:
            RuntimeUnavailable: the engine, the browser or the GPU is missing.
        """
        facts = _OnnxRuntimeWeb.check(options)
        _require_gpu()
        page = _Page("webgpu", {})
        page.close()
        return {**facts, "adapter": page.first.query["adapter"]}
