"""``segx bench``: parse, call ``segx.benchmark``, print."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from segx.cli import options
from segx.cli.options import BYTES, COUNT, PATH, POSITIVE_INTEGERS, SECONDS, SHARE
from segx.errors import GateNotMet, InferenceError, NotComparable, OutputError

if TYPE_CHECKING:
    from segx.results.types import Results

# What --quick means for the options that are not given.
_QUICK = {
    "warmup": 0, "processes": 1, "min_time_s": 0.5, "min_runs": 6, "max_time_s": 2.5, "num_images": 8,
    "batch_sizes": (1, 4),
}  # fmt: skip


# Headings of the help.
_HEADINGS = {
    "Images": ("images", "masks", "calibration", "num_images"),
    "Sampling": (
        "quick", "budget_s", "min_time_s", "max_time_s", "min_runs", "processes", "warmup", "seed",
    ),
    "Engines": ("threads", "memory_profile", "memory_limit_bytes", "engine_options", "timeout_s"),
    "Masks": ("require", "min_iou", "max_flips", "max_loss"),
}  # fmt: skip


# What --resume does not take from the interrupted bench: where results go, and what is printed.
_OF_ONE_SESSION = ("output", "resume", "details", "as_json")


class _ResumableCommand(options.GroupedCommand):
    """A command that, with --resume, takes the options that are not given from the interrupted bench."""

    def invoke(self, ctx: click.Context) -> Any:
        """Fill in those options, and run."""
        if folder := ctx.params["resume"]:
            given = {name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
            begun = self._of_bench(folder, ctx, is_told=bool(given - {*_OF_ONE_SESSION}))
            ctx.params |= {name: value for name, value in begun.items() if name not in given}
        return super().invoke(ctx)

    def _of_bench(self, folder: Path, ctx: click.Context, *, is_told: bool) -> dict[str, Any]:
        """Return the options of the bench in a folder; none if it has no results, or was not begun by a command.

        None either if it was begun in another folder than this, from which its command names paths, and the user gives
        options (``is_told``).

        Raises:
            NotComparable: it was begun in another folder and no options are given, or its command cannot be read.
        """
        from segx.bench.api import MAY_CHANGE
        from segx.results.store import load_results

        if not (folder / "results.json").is_file():
            return {}
        before = load_results(folder)
        if not before.command.startswith("segx bench"):
            return {}
        begun_in = Path(before.working_folder)
        if before.working_folder and begun_in.is_dir() and not begun_in.samefile(Path.cwd()):
            if is_told:
                return {}
            again = shlex.join(["segx", "bench", "--resume", str(folder.resolve())])
            raise NotComparable(
                f"the bench in {folder} was started in {begun_in}, and its options name paths from there",
                hint=f"continue there: cd {shlex.quote(str(begun_in))} && {again}",
            )
        try:
            words = shlex.split(before.command)
            # ~ is replaced by a shell, and none reads this command.
            words = [str(Path(word).expanduser()) if word.startswith("~/") else word for word in words]
            found = self.make_context("bench", words[2:], parent=ctx.parent).params
        except (ValueError, click.UsageError) as error:
            raise NotComparable(
                f"the bench in {folder} has a command that cannot be read: {error}", hint="start a new bench"
            ) from error
        kept = {name: value for name, value in found.items() if name not in _OF_ONE_SESSION}
        return kept | {name: getattr(before.options, name) for name in MAY_CHANGE}


@click.command(cls=_ResumableCommand, headings=_HEADINGS)
@options.weights_option
@options.onnx_option
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("all",),
    help="What runs the model: all, names as in `segx doctor`, short names (openvino, ort, torch, trt), or variants as "
    "reports print them (openvino-cpu:int8). Separate several by commas, or repeat the option.  [default: all]",
)
@options.device_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="fp32 (strict, without TF32), tf32, fp16, bf16, int8 or all. native: fp32, and lower ones that this "
    "machine has instructions for and that need no calibration. auto: these, plus int8 on the CPU if there are images "
    "to calibrate it on and preparing it takes less than a minute. Separate several by commas.  [default: auto; with "
    "--quick native on a GPU or a CPU with AMX, else fp32]",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("forward",),
    help="What is timed. forward: arrays in host memory to arrays in host memory; device: data stays on the GPU; "
    "pipeline: image file to mask file. Separate several by commas.  [default: forward]",
)
@click.option("--images", type=PATH, help="Folder of images to measure with.  [default: generated scenes]")
@click.option(
    "--masks",
    type=PATH,
    help="Folder of true masks, named like the images; for a multilabel model, in folders 0, 1, …",
)
@options.calibration_option("some of --images, which are then not measured; else generated scenes")
@click.option("--num-images", type=COUNT, help="Use at most this many images.  [default: 64]")
@click.option("--batch-size", "batch_sizes", type=POSITIVE_INTEGERS, help="Images per call.  [default: 1,2,4,8,16]")
@click.option("--warmup", type=click.IntRange(0), help="Untimed calls before the timed ones.  [default: 2]")
@click.option(
    "--min-time",
    "min_time_s",
    type=SECONDS,
    help="Time each runtime at each batch size for at least this long.  [default: 5s]",
)
@click.option(
    "--min-runs",
    type=COUNT,
    help="Make at least this many timed calls in each cell (a runtime at a batch size).  [default: 10]",
)
@click.option(
    "--processes",
    type=COUNT,
    help="Measure each cell in this many processes, one after the other, which share its time.  [default: 2]",
)
@click.option(
    "--max-time",
    "max_time_s",
    type=SECONDS,
    help="Stop sampling a cell after this long even if its median has not settled.  [default: 20s]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed for the order in which runtimes take turns.",
)
@click.option("--budget", "budget_s", type=SECONDS, help="Stop when all timed calls together have taken this long: 5m.")
@click.option(
    "--quick",
    is_flag=True,
    help="Take a first look: batch sizes 1 and 4, 8 images, 0.5 to 2.5 seconds of calls per cell but at least 6 calls, "
    "one process, and no runtime that compiles or runs in a browser.",
)
@click.option("--threads", type=options.THREADS, help="Threads of every runtime.  [default: all usable cores]")
@click.option(
    "--memory-profile",
    type=click.Choice(["default", "low"]),
    default="default",
    show_default=True,
    help="low: ONNX Runtime uses less memory and is somewhat slower.",
)
@click.option(
    "--engine-option",
    "engine_options",
    type=options.NAME_VALUE,
    multiple=True,
    help="A setting of a CUDA engine, such as cudnn_conv_algo_search=EXHAUSTIVE, prefer_nhwc=1 or "
    "cuda_graph=1. Repeatable.",
)
@click.option(
    "--memory-limit",
    "memory_limit_bytes",
    type=BYTES,
    help="Stop a CPU runtime that takes more memory than this: 2GB.  [default: what is free]",
)
@click.option(
    "--min-iou",
    type=click.FloatRange(0, 1),
    help="Masks fail if the IoU with the reference's is lower than this in any image.  [default: by precision]",
)
@click.option(
    "--max-changed-pixels",
    "--max-flips",
    "max_flips",
    type=SHARE,
    help="Masks fail if a larger share of their pixels changes: 0.01%.  [default: by precision]",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 1),
    default=0.001,
    show_default=True,
    help="Largest loss of IoU with the true masks that counts as no worse.",
)
@options.require_option("Recommend only a variant")
@click.option(
    "--timeout",
    "timeout_s",
    type=SECONDS,
    default="10m",
    show_default=True,
    help="Kill a worker that has not answered for this long.",
)
@click.option("--output", type=PATH, help="Folder for the results.  [default: artifacts/bench-DATE]")
@click.option(
    "--resume",
    type=PATH,
    help="Continue the interrupted bench in this folder, with its options unless others are given.",
)
@options.details_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
@options.model_options
@options.foreign_options
@options.debug_option
def bench(
    weights: Path | None,
    onnx: Path | None,
    runtimes: tuple[str, ...],
    device: Any,
    precisions: tuple[str, ...],
    scopes: tuple[str, ...],
    quick: bool,
    engine_options: tuple[tuple[str, Any], ...],
    output: Path | None,
    resume: Path | None,
    details: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare runtimes on identical batches: speed, memory and masks.

    Exports the checkpoint first if a runtime needs that. Each runtime at each batch size (a cell) runs in its own
    process: if one fails, the table says why, and the others continue. Results are saved after every cell, and a page
    with charts is written at the end.

    \b
    segx bench --runtime all --quick
    segx bench --runtime torch,openvino:int8 --device cpu --batch-size 1,8
    segx bench --weights unet.pth --arch Unet --encoder resnet18 --budget 5m
    segx bench --model other.onnx --precision all
    segx bench --scope forward,pipeline --images photos/
    """
    from segx.bench import api
    from segx.results.store import load_results
    from segx.runtimes import resolve_names
    from segx.system.progress import progress_on
    from segx.system.text import command_line

    if resume and output:
        raise click.UsageError("--resume already names the folder; leave out --output")
    folder = resume or output or _new_folder()
    checkpoint = None if onnx and not weights else options.resolve_weights(weights)
    overrides = options.spec_overrides(**given)
    with progress_on() as progress:
        onnx, overrides = options.resolve_onnx(onnx, overrides, progress)
    spec = options.resolve_spec(checkpoint, overrides, onnx=onnx)
    given = {name: value for name, value in given.items() if value is not None}
    given["settings"] = {name: str(value) for name, value in engine_options}
    if quick:
        runtimes, given = _quick_runtimes(runtimes, device), {**_QUICK, **given}
    elif device:
        runtimes = tuple(resolve_names(runtimes, device))
    try:
        with progress_on() as progress:
            results = api.benchmark(
                checkpoint,
                model=onnx,
                spec=spec,
                runtimes=runtimes,
                precisions=_words(precisions) or (_quick_precision() if quick else "auto",),
                scopes=_words(scopes),
                **({"batch_sizes": given["batch_sizes"]} if "batch_sizes" in given else {}),
                data=options.filled(api.DataOptions, given),
                sampling=options.filled(api.SamplingOptions, given),
                engine=options.filled(api.EngineOptions, given),
                limits=options.filled(api.Limits, given),
                gate=options.filled(api.Gate, given),
                output=api.BenchOutput(
                    folder=folder,
                    resume=resume is not None,
                    command=command_line(["segx", *sys.argv[1:]]),
                    progress=progress,
                    on_results=lambda results: _write_tables(results, folder),
                ),
            )
    except KeyboardInterrupt as interrupt:
        saved = folder / "results.json"
        if saved.is_file():
            _print(load_results(folder), details=details, as_json=as_json)
            again = command_line(["segx", "bench", "--resume", str(folder)])
            interrupt.args = (f"continue with {again}; what was measured is in {folder}",)
        raise
    _print(results, details=details, as_json=as_json)
    _write_report(results, folder)
    click.echo(f"results are in {folder}", err=True)
    _check_outcome(results)


def _new_folder() -> Path:
    """Return a folder named by the time; of several benches within a second each has its own."""
    folder = Path("artifacts") / time.strftime("bench-%Y%m%d-%H%M%S")
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


def _print(results: Results, *, details: bool, as_json: bool) -> None:
    from segx.reporting.bench_document import terminal_document
    from segx.reporting.renderers.text import to_stream
    from segx.results.store import to_json

    if as_json:
        click.echo(to_json(results), nl=False)
    else:
        click.echo(to_stream(terminal_document(results, details=details), sys.stdout), nl=False, color=True)


def _quick_runtimes(requested: tuple[str, ...], device: Any) -> tuple[str, ...]:
    """Return the runtimes that start at once, and any that is named."""
    from segx.runtimes import ALL, resolve_names, runtime_info

    named = {name for word in _words(requested) if word != ALL for name in resolve_names([word], device)}
    names = resolve_names(requested, device)
    infos = {name: runtime_info(name.partition(":")[0]) for name in names}
    left_out = [name for name, info in infos.items() if (info.compiles or info.in_browser) and name not in named]
    if left_out:
        click.echo(
            f"--quick leaves out slow starters ({', '.join(left_out)}): name one to include it",
            err=True,
        )
    return tuple(name for name in names if name not in left_out)


def _quick_precision() -> str:
    """Return the default precisions of --quick: lower ones gain little on a CPU without AMX."""
    from segx.system import machine

    return (
        "native" if any(machine.compute_capability()) or any("amx" in flag for flag in machine.cpu_flags()) else "fp32"
    )


def _words(given: tuple[str, ...]) -> tuple[Any, ...]:
    """Split the values of an option that may be repeated or given with commas."""
    return tuple(word.strip() for text in given for word in text.split(",") if word.strip())


def _write_tables(results: Results, folder: Path) -> None:
    from segx.reporting.bench_document import bench_document
    from segx.reporting.renderers.csv_json import bench_rows, to_csv
    from segx.reporting.renderers.markdown import to_markdown
    from segx.system.files import write_text

    write_text(folder / "table.md", to_markdown(bench_document(results).without("all")))
    write_text(folder / "table.csv", to_csv(bench_rows(results)))


def _write_report(results: Results, folder: Path) -> None:
    """Write the page; the results are complete without it."""
    from segx.reporting.renderers.html.page import NAME, write_bench_page

    try:
        write_bench_page(results, folder, folder / NAME)
    except OutputError as error:
        click.echo(f"no report: {error.message}; {error.hint}", err=True)


def _check_outcome(results: Results) -> None:
    """Fail if a gate or limit that the user set was not met, only the reference met its own gate, or nothing ran."""
    broken = [cell for cell in results.cells if cell.status == "parity broken"]
    gated = results.options.min_iou is not None or results.options.max_flips is not None
    passed = any(cell.status == "ok" and str(cell.variant) != results.reference for cell in results.cells)
    if broken and (gated or not passed):
        raise GateNotMet(
            f"masks of {broken[0].variant} at batch {broken[0].batch_size} differ from {results.reference}: "
            f"{broken[0].reason}",
            hint=broken[0].remedy,
        )
    if not any(cell.measured for cell in results.cells):
        raise InferenceError("nothing could be measured", hint=results.cells[0].remedy)
    options.check_limits(results)
