"""Run two checkouts of segx on the same recorded results and files, and show in which facts their outputs differ.

    uv run python tests/benchmarks/compare_trees.py OLD_CHECKOUT RESULTS_FOLDER [RESULTS_FOLDER ...] [--files]

Data (CSV, JSON) is compared field by field. In what people read (text, Markdown, job summary, page), layout and wording
may differ, so figures are compared: every number of the old output must occur in the new one, possibly with more or
fewer digits (those of `doctor` change between any two runs). ``--files`` also exports the shipped weights and segments
samples in both checkouts, and compares masks byte for byte and models node by node. The exit code is 1 if
anything differs.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

NEW = Path(__file__).resolve().parents[2]
_READ_BY_PEOPLE = ("text", "markdown", "github", "html")
# Differ between two runs of one checkout, or name the place where it ran.
_VOLATILE = re.compile(r"created|segx-[\w.-]+|/tmp/\S+")
_FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def run(tree: Path, folder: Path, *arguments: str) -> str:
    """Return what a segx command of a checkout prints; its working directory is ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    command = [sys.executable, "-m", "segx", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        click.echo(f"  {tree.name}: segx {' '.join(arguments)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def copy_results(tree: Path, recorded: Path, folder: Path) -> None:
    """Copy recorded results for a checkout, with the schema version that it writes."""
    shutil.copytree(recorded, folder)
    file = folder / "results.json"
    code = "from segx.{} import SCHEMA_VERSION as version\nprint(version)"
    for module in ("results.store", "bench.results_file"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(module)],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(r'("schema_version": )\d+', rf"\g<1>{int(done.stdout)}", text, count=1))
            return
    raise click.ClickException(f"{tree} is not a checkout of segx")


def figures(text: str) -> set[str]:
    """Return the numbers of a text, without signs and separators of thousands."""
    return {found.replace(",", "") for found in _FIGURE.findall(_VOLATILE.sub(" ", text))}


def missing_figures(old: str, new: str) -> list[str]:
    """Return the numbers of one text that another does not have, also not with more or fewer digits."""
    known = figures(new)
    rounded = [(float(figure), _half_unit(figure)) for figure in known]

    def shown(figure: str) -> bool:
        value, unit = float(figure), _half_unit(figure)
        return figure in known or any(abs(value - other) <= max(unit, its) * 1.001 for other, its in rounded)

    return sorted(figure for figure in figures(old) if not shown(figure))


def _half_unit(figure: str) -> float:
    """Return half a unit of the last digit; 0 for numbers with an exponent."""
    return 0.0 if "e" in figure else 0.5 * 10.0 ** -len(figure.partition(".")[2])


def visible(page: str) -> str:
    """Return what a page shows as text: no scripts, no styles, no tags; the data of its charts is left out."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def differing(old: Any, new: Any, path: str = "$") -> Iterator[str]:
    """Yield the places in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if name in {"created", "schema_version", "source", "git_commit", "command"}:
                continue
            if name not in old or name not in new:
                yield f"{path}.{name}: only in the {'new' if name in new else 'old'} output"
            else:
                yield from differing(old[name], new[name], f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from differing(*pair, f"{path}[{place}]")
    elif old != new and not (isinstance(old, float) and isinstance(new, float) and abs(old - new) <= 1e-12 * abs(old)):
        yield f"{path}: {old!r} -> {new!r}"


def compare_forms(old: dict[str, str], new: dict[str, str]) -> int:
    """Print how the outputs of two checkouts differ, form by form, and return how many forms differ."""
    count = 0
    for form, before in old.items():
        after = new[form]
        kind = form.rpartition(" ")[2]
        if kind == "json":
            lines = list(differing(json.loads(before), json.loads(after)))
        elif kind == "csv":
            rows = [list(csv.DictReader(io.StringIO(text))) for text in (before, after)]
            lines = list(differing(*rows))
        else:
            texts = [visible(text) if kind == "html" else text for text in (before, after)]
            missing = missing_figures(*texts)
            lines = [f"figures that are missing: {', '.join(missing)}"] if missing else []
        count += bool(lines)
        click.echo(f"  {form}: {'same facts' if not lines else f'{len(lines)} differences'}")
        for line in lines[:20]:
            click.echo(f"    {line}")
    return count


def shown(tree: Path, folder: Path, names: list[str]) -> dict[str, str]:
    """Return every output form of a checkout for copies of recorded results in ``folder``."""
    forms = {}
    for name in names:
        for form in (*_READ_BY_PEOPLE[:-1], "csv", "json"):
            forms[f"report {name} as {form}"] = run(tree, folder, "report", name, "--format", form)
        run(tree, folder, "report", name, "--output", f"{name}.html")
        forms[f"report {name} as html"] = (folder / f"{name}.html").read_text(encoding="utf-8")
        limits = ("--max-latency", "200ms", "--max-memory", "512MiB", "--min-iou", "0.99")
        forms[f"report {name} with limits as text"] = run(tree, folder, "report", name, "--format", "text", *limits)
    for form in ("text", "markdown", "csv", "json"):
        if len(names) > 1:
            forms[f"report {' '.join(names)} as {form}"] = run(tree, folder, "report", *names, "--format", form)
        forms[f"history as {form}"] = run(tree, folder, "history", ".", "--format", form)
    first, last = names[0], names[-1]
    forms[f"compare {first} {last} as text"] = run(tree, folder, "compare", first, last)
    forms["doctor as text"] = run(tree, folder, "doctor")
    return forms


def made(tree: Path, folder: Path) -> dict[str, str]:
    """Return the digests of the files that a checkout makes: samples, masks, and the graph of an exported model."""
    folder.mkdir()
    run(tree, folder, "samples", "--count", "4", "--size", "256", "--out", "samples")
    run(tree, folder, "export", "--output", "model.onnx")
    images = ("predict", "samples/images", "--output")
    run(tree, folder, *images, "masks", "--model", "model.onnx", "--runtime", "onnxruntime-cpu", "--overlay")
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".png", ".jpg"}
    }
    return {**digests, "graph of model.onnx": _graph_digest(folder / "model.onnx")}


def _graph_digest(path: Path) -> str:
    """Return the digest of the nodes and initializers of a model; its metadata have dates and the paths of sources."""
    import onnx

    graph = onnx.load(path).graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    digest = hashlib.sha256()
    for part in (*graph.node, *graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


@click.command(help=__doc__)
@click.argument("old", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--files", is_flag=True, help="Compare exported models, samples and masks too; takes minutes.")
def main(old: Path, results: tuple[Path, ...], files: bool) -> None:
    """Compare two checkouts."""
    trees = {"old": old.resolve(), "new": NEW}
    names = [path.resolve().name for path in results]
    outputs = {}
    with tempfile.TemporaryDirectory(prefix="segx-trees-") as scratch:
        for label, tree in trees.items():
            folder = Path(scratch) / label
            folder.mkdir()
            for path in results:
                copy_results(tree, path.resolve(), folder / path.resolve().name)
            outputs[label] = shown(tree, folder, names)
        count = compare_forms(outputs["old"], outputs["new"])
        if files:
            before, after = (made(tree, Path(scratch) / f"{label} files") for label, tree in trees.items())
            lines = list(differing(before, after))
            click.echo(f"  {len(before)} files: {'same' if not lines else f'{len(lines)} differ'}")
            for line in lines:
                click.echo(f"    {line}")
            count += bool(lines)
    click.echo("same facts" if not count else f"{count} outputs differ")
    sys.exit(bool(count))


if __name__ == "__main__":
    main()
