"""``segx demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segx.cli import options


@click.command(cls=options.GroupedCommand)
@options.weights_option
@options.onnx_option
@click.option(
    "--runtime",
    default="onnxruntime",
    show_default=True,
    help="What to compare with first: a name as in `segx doctor`, a short one (openvino, ort, torch), or a variant "
    "(openvino-cpu:int8). The page offers the others.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on.  [default: a free one]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve on. With any other, everyone who can reach it can use the page.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--threads", type=options.THREADS, help="Threads to use.  [default: all usable cores]")
@options.model_options
@options.foreign_options
@options.debug_option
def demo(
    weights: Path | None,
    onnx: Path | None,
    runtime: str,
    port: int,
    host: str,
    open_browser: bool,
    threads: int | None,
    threshold: float | None,
    **model: Any,
) -> None:
    """Segment images in the browser, on a page served by this machine.

    Images can be chosen, dropped, pasted or taken with a camera. The page shows the mask that the browser computes
    beside that of a native runtime. It needs no network. Ctrl-C stops it.

    \b
    segx demo --open
    segx demo --model unet.onnx --port 8000
    """
    import contextlib
    import threading
    import webbrowser

    from segx.demo import serve
    from segx.export.variants import resolve_model
    from segx.system import machine
    from segx.system.progress import progress_on

    checkpoint = None if onnx and not weights else options.resolve_weights(weights)
    # As in predict, so that one exported file serves all thresholds.
    overrides = options.spec_overrides(**model)
    with contextlib.ExitStack() as until_interrupted:
        with progress_on() as progress:
            onnx, overrides = options.resolve_onnx(onnx, overrides, progress)
            files = resolve_model(
                checkpoint,
                onnx,
                options.resolve_spec(checkpoint, overrides, onnx=onnx) if overrides or not onnx else None,
            )
            server = until_interrupted.enter_context(
                serve(
                    files,
                    threads=threads or machine.usable_cores(),
                    runtime=runtime,
                    threshold=threshold,
                    host=host,
                    port=port,
                    progress=progress,
                )
            )
        # A reader of the address may end the page at once.
        with contextlib.suppress(KeyboardInterrupt):
            click.echo("press Ctrl-C to stop", err=True)
            click.echo(server.url)
            if open_browser:
                webbrowser.open(server.url)
            threading.Event().wait()
