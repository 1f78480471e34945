"""Tables from hand-made results: every figure can be checked by head."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from segx.errors import ResultsError
from segx.model.spec import ModelSpec
from segx.reporting.bench_document import bench_document
from segx.reporting.document import Table
from segx.reporting.renderers.html.page import bench_page
from segx.results.provenance import machine_id
from segx.results.store import load_results, to_json
from segx.results.types import Cell, DerivedFile, Gpu, HostMemory, Parity, ReferenceMasks, Results, Round, TruthScore
from tests import builders
from tests.forms import to_csv, to_markdown, to_text, with_details


def cell(runtime: str, batch_size: int, call_s: float, runs: int = 8) -> Cell:
    return Cell(
        runtime=runtime,
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=(call_s,) * runs,
        rounds=tuple(Round(number=i, runs=1) for i in range(runs)),
        stopped="settled",
        import_s=0.1,
        load_s=0.2,
        first_s=0.3,
        facts={"threads": "2", "tf32": "off"},
        host_memory=HostMemory(0, 0, (70 + 30 * batch_size) * 2**20, "made up"),
    )


@pytest.fixture
def results(make_results: Callable[..., Results], make_parity: Callable[..., Parity]) -> Results:
    def judged(measured: Cell) -> Cell:
        return dataclasses.replace(measured, parity=make_parity())

    return make_results(
        judged(cell("pytorch-cpu", 1, 0.4)),
        Cell(
            runtime="pytorch-cuda",
            precision="fp32",
            batch_size=None,
            status="unavailable",
            reason="no driver",
            remedy="get one",
        ),
        judged(cell("onnxruntime-cpu", 1, 0.2)),
        judged(cell("pytorch-cpu", 2, 0.8)),
        judged(cell("onnxruntime-cpu", 2, 0.32)),
        judged(cell("pytorch-cpu", 4, 2.0)),
        Cell(
            runtime="onnxruntime-cpu",
            precision="fp32",
            batch_size=4,
            status="out of memory",
            reason="it is full",
            remedy="use less",
        ),
        runtimes=("pytorch-cpu", "pytorch-cuda", "onnxruntime-cpu"),
        batch_sizes=(1, 2, 4),
    )


def test_the_sections_of_a_bench(results: Results) -> None:
    document = bench_document(results)
    keys = ["decision", "overview", "not-measured", "variants", "calls", "all", "notes", "reproduce", "environment"]
    assert [section.key for section in document.sections] == keys
    variants = document.section("variants")
    assert variants
    (table,) = variants.blocks
    assert isinstance(table, Table)
    assert [heading[0].text for heading in table.groups.values()] == ["onnxruntime-cpu:fp32", "pytorch-cpu:fp32"]


def test_the_table_of_batch_sizes(results: Results) -> None:
    text = to_text(results)
    assert text.splitlines()[4:14] == [
        "batch  4 images  ms/image  images/s     ±   memory  vs batch 1  vs previous",
        "onnxruntime:fp32 · 2.5x PyTorch · masks: identical",
        "    1   0.800 s       200      5.00  0.0%  100 MiB           –            –",
        "    2   0.640 s       160      6.25  0.0%  130 MiB       1.25x        1.25x",
        "    4  out of memory",
        "pytorch:fp32 · reference",
        "    1    1.60 s       400      2.50  0.0%  100 MiB           –            –",
        "    2    1.60 s       400      2.50  0.0%  130 MiB           =            =",
        "    4    2.00 s       500      2.00  0.0%  190 MiB       0.80x        0.80x",
        "=  no difference beyond noise   skipped: 1 (--details)",
    ]
    assert text.endswith(
        """
Not measured (1)
where                     what happened              what to do
onnxruntime:fp32 batch 4  out of memory: it is full  use less

Use onnxruntime:fp32, batch 2: 320 ms/call, 6.25 images/s, 130 MiB. 2.5x
PyTorch.
  Masks: identical; no pixel of 262,144 in 4 images differs
  For least memory    pytorch:fp32, batch 1: 100 MiB, 400 ms
  For shortest waits  onnxruntime:fp32, batch 1: 200 ms, 5.00 images/s
  segx export --weights /models/w.pth
"""
    )


def test_details_show_what_is_left_out_in_short(results: Results) -> None:
    text = to_text(results, details=True)
    assert "    1      8     200      0.10    0.20     0.30" in text
    assert "onnxruntime:fp32 · 30 MiB per image on top of 70 MiB" in text
    assert "pytorch-cuda:fp32         no driver                  get one" in text
    assert text.index("\nNotes\n") < text.index("\nUse onnxruntime:fp32")


def test_batch_sizes_ascend_whatever_the_order_of_the_options(results: Results) -> None:
    options = dataclasses.replace(results.options, batch_sizes=(4, 2, 1))
    cells = sorted(results.cells, key=lambda cell: -(cell.batch_size or 0))
    turned = dataclasses.replace(results, cells=tuple(cells), options=options)
    assert to_text(turned) == to_text(results)

    def rows(shown: Results) -> list[dict[str, str]]:
        return sorted(csv.DictReader(io.StringIO(to_csv(shown))), key=lambda row: (row["variant"], row["batch_size"]))

    assert [{**row, "bench": ""} for row in rows(turned)] == [{**row, "bench": ""} for row in rows(results)]


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 4, 8, 16, 32)])
def test_of_many_batch_sizes_the_first_the_best_and_the_last_are_shown(
    results: Results, sizes: tuple[int, ...]
) -> None:
    options = dataclasses.replace(results.options, batch_sizes=sizes)
    cells = tuple(cell("pytorch-cpu", size, size * (0.4 if size == 1 else 0.3)) for size in sizes)
    many = dataclasses.replace(results, options=options, cells=cells)

    def shown(*, details: bool) -> list[str]:
        return re.findall(r"^ +(\d+) +\d[.\d]* s ", to_text(many, details=details), flags=re.MULTILINE)

    assert shown(details=False) == [str(size) for size in sizes if size in (1, 2, 32)]
    assert shown(details=True) == [str(size) for size in sizes]
    assert ("vs batch 1" in to_text(many)) == (len(sizes) > 1)


def test_names_keep_the_device_if_several_were_measured(results: Results) -> None:
    on_gpu = dataclasses.replace(results.cells[0], runtime="pytorch-cuda")
    text = to_text(dataclasses.replace(results, cells=(*results.cells, on_gpu)))
    assert "pytorch-cpu:fp32 · reference" in text
    assert "\npytorch-cuda:fp32" in text


def test_ratios_are_of_images_per_second(results: Results) -> None:
    rows = {(r["runtime"], r["batch_size"]): r for r in csv.DictReader(io.StringIO(to_csv(results)))}
    row = rows["onnxruntime-cpu", "2"]  # 0.16 s per image, after 0.2 at batch 1; PyTorch takes 0.4
    assert float(row["vs_batch_1"]) == pytest.approx(1.25)
    assert float(row["vs_previous"]) == pytest.approx(1.25)
    assert float(row["vs_pytorch"]) == pytest.approx(2.5)
    assert float(rows["pytorch-cpu", "4"]["vs_previous"]) == pytest.approx(0.8)


def test_masks_are_those_of_the_row_and_name_a_batch_size_where_they_are_worse(results: Results) -> None:
    def changed(each: Cell) -> Cell:
        if each.runtime != "onnxruntime-cpu" or each.batch_size != 1:
            return each
        parity = builders.parity(flipped_pixels=9000, worst_iou=0.8, flip_distance_px=20.0)
        return dataclasses.replace(each, status="parity broken", parity=parity)

    failed = dataclasses.replace(results, cells=tuple(map(changed, results.cells)))
    assert "masks: identical; FAILED at batch 1 (9,000 px)" in to_text(failed)
    rows = [line for line in to_markdown(failed).splitlines() if "identical; FAILED at batch 1 |" in line]
    assert rows[0].startswith("| onnxruntime-cpu:fp32 |")
    assert "FAILED" not in to_text(results)


def test_a_failed_row_is_skipped_by_vs_previous(results: Results) -> None:
    last = cell("onnxruntime-cpu", 8, 0.8)
    options = dataclasses.replace(results.options, batch_sizes=(1, 2, 4, 8))
    longer = dataclasses.replace(results, options=options, cells=(*results.cells, last))
    row = list(csv.DictReader(io.StringIO(to_csv(longer))))[-1]
    assert float(row["vs_previous"]) == pytest.approx(0.16 / 0.1)
    assert float(row["vs_pytorch"]) == pytest.approx(4.0)  # of the fastest batch size


def test_time_for_all_images_is_measured_or_marked_as_projected(results: Results) -> None:
    assert "≈" not in to_text(results, 200)
    short = dataclasses.replace(results, cells=(cell("pytorch-cpu", 1, 0.4, runs=3),))
    assert "≈1.60 s" in to_text(short, 200)
    assert "≈  projected" in to_text(short)


def test_an_iou_below_one_is_never_rounded_up_to_one(results: Results, make_parity: Callable[..., Parity]) -> None:
    nearly = dataclasses.replace(results.cells[0], parity=make_parity(worst_iou=0.99999, flipped_pixels=1))
    text = to_text(dataclasses.replace(results, cells=(nearly,)), details=True)
    assert "0.9999" in text
    assert "1.0000" not in text


@pytest.mark.parametrize(("percent", "needed"), [(90, 64), (95, 130), (99, 662)])
def test_percentiles_only_with_enough_runs(results: Results, percent: int, needed: int) -> None:
    few, many = (
        to_text(dataclasses.replace(results, cells=(cell("pytorch-cpu", 1, 0.4, runs=runs),)), 250, details=True)
        for runs in (needed - 1, needed)
    )
    assert f"p{percent} ms" not in few
    assert f"p{percent} from {needed} calls" in few
    assert f"p{percent} ms" in many
    assert f"p{percent} from" not in many


def shaken(runtime: str, batch_size: int, call_s: float, seed: int) -> Cell:
    """A cell whose calls vary by some percent."""
    factors = np.random.default_rng(seed).normal(1.0, 0.05, size=20)
    samples = tuple(float(call_s * factor) for factor in factors)
    return dataclasses.replace(
        cell(runtime, batch_size, call_s), samples_s=samples, rounds=tuple(Round(number=i, runs=1) for i in range(20))
    )


def test_a_ratio_whose_interval_spans_1_is_tied(results: Results) -> None:
    near = (shaken("pytorch-cpu", 1, 0.4, seed=0), shaken("pytorch-cpu", 2, 0.799, seed=1))
    assert re.search(r"^    2 .* =  +=$", to_text(dataclasses.replace(results, cells=near)), flags=re.MULTILINE)
    far = (shaken("pytorch-cpu", 1, 0.4, seed=0), shaken("pytorch-cpu", 2, 0.4, seed=1))
    assert re.search(r"(1\.9\d|2\.[01])x$", to_text(dataclasses.replace(results, cells=far)), flags=re.MULTILINE)
    assert "=" not in to_text(dataclasses.replace(results, cells=far))


def test_a_ratio_from_too_few_rounds_says_that_its_error_is_unknown(results: Results) -> None:
    few = (cell("pytorch-cpu", 1, 0.4, runs=5), cell("pytorch-cpu", 2, 0.4, runs=5))
    text = to_text(dataclasses.replace(results, cells=few))
    assert " 2.0x?" in text
    assert "?  too few rounds" in text


def test_cells_that_did_not_settle_are_named(results: Results) -> None:
    wild = dataclasses.replace(results.cells[0], stopped="not settled")
    doubtful = dataclasses.replace(results, cells=(wild, *results.cells[1:]))
    assert "!0.0%" in to_text(doubtful)
    assert "!  did not settle" in to_text(doubtful)
    text = to_text(doubtful, details=True)
    assert "a quieter machine): pytorch:fp32 batch 1." in " ".join(text.split())
    assert "--max-time" in text


def _noisy(results: Results, kind: str) -> Results:
    if kind == "load":
        return dataclasses.replace(results, machine=dataclasses.replace(results.machine, load_average_1min=5.1))
    wild = [
        dataclasses.replace(
            each, stopped="not settled", samples_s=tuple(each.median_s * f for f in (1, 1.25, 0.75) * 4)
        )
        if each.measured
        else each
        for each in results.cells
    ]
    return dataclasses.replace(results, cells=tuple(wild))


@pytest.mark.parametrize(("kind", "reason"), [("load", "load 5.1 on 2 cores"), ("cells", "5 of 5 unsettled")])
@pytest.mark.parametrize("form", [to_text, to_markdown, bench_page])
def test_a_noisy_run_says_so_above_its_answer(
    results: Results, kind: str, reason: str, form: Callable[[Results], str]
) -> None:
    noisy = " ".join(form(_noisy(results, kind)).split())
    assert "Noisy run" not in form(results)
    assert 0 < noisy.index("Noisy run: ") < noisy.index("Use onnxruntime")
    assert f"{reason}; trust only the order." in noisy


@pytest.mark.parametrize("form", [to_text, to_markdown, bench_page])
def test_the_reference_is_not_compared_with_itself(form: Callable[[Results], str]) -> None:
    results = load_results(Path(__file__).parents[1] / "results" / "eight.json")
    alone = [each for each in results.cells if str(each.variant) == results.reference]
    shown = form(dataclasses.replace(results, cells=tuple(alone)))
    assert "the reference itself" in shown
    assert "IoU with the true masks 0.9868" in shown
    assert not re.search("no worse|identical", shown.partition("Data of this chart")[0])


def test_pytorch_has_no_ratio_to_itself_at_another_batch_size(results: Results) -> None:
    cells = [cell("pytorch-cpu", size, time) for size, time in ((1, 1.0), (2, 1.95), (4, 3.85))]
    shown = to_markdown(dataclasses.replace(results, cells=(*cells, cell("onnxruntime-cpu", 1, 0.5))))
    assert re.search(r"\| pytorch-cpu:fp32 +\| +1 \| +1.00 \|.* – \|", shown)


def test_nothing_is_shown_of_cells_that_all_failed(results: Results) -> None:
    failed = [dataclasses.replace(each, status="failed", reason="it broke") for each in results.cells]
    shown = to_text(dataclasses.replace(results, cells=tuple(failed)))
    assert "images/s" not in shown
    assert "(--details)" not in shown
    assert "it broke" in shown


def test_pytorch_alone_is_not_compared_with_itself(results: Results) -> None:
    alone = tuple(each for each in results.cells if str(each.variant) == "pytorch-cpu:fp32")
    inputs = dataclasses.replace(results.inputs, truth="generated")
    for form in (to_markdown, bench_page):
        shown = form(dataclasses.replace(results, cells=alone, inputs=inputs))
        assert "× PyTorch" not in shown
        assert "quality" not in shown


def test_one_measured_batch_size_has_no_columns_of_ratios(results: Results) -> None:
    first = [each for each in results.cells if each.batch_size == 1]
    assert "vs batch 1" not in to_text(dataclasses.replace(results, cells=tuple(first), complete=False))


def test_a_cell_of_a_runtime_that_is_not_among_the_options_is_shown_last(results: Results) -> None:
    fewer = dataclasses.replace(results.options, runtimes=("onnxruntime-cpu",))
    foreign = dataclasses.replace(results, options=fewer)
    for form in (to_text, to_markdown, to_csv, bench_page):
        assert re.search(r"pytorch(-cpu)?\b", form(foreign))


def test_a_busy_machine_is_pointed_out(results: Results) -> None:
    assert "other programs" not in with_details(results)
    busy = dataclasses.replace(results.machine, load_average_1min=2.1)
    assert "load was 2.1 on 2 cores" in with_details(dataclasses.replace(results, machine=busy))


def test_rounds_are_summed_up_by_their_medians() -> None:
    turns = (Round(number=0, runs=3), Round(number=4, runs=1))
    rounds = dataclasses.replace(cell("pytorch-cpu", 1, 1.0), samples_s=(1.0, 3.0, 2.0, 5.0), rounds=turns)
    assert rounds.round_medians_s == (2.0, 5.0)
    assert dataclasses.replace(rounds, rounds=()).round_medians_s == (1.0, 3.0, 2.0, 5.0)


def test_a_saved_bench_is_shown() -> None:
    loaded = load_results(Path(__file__).parents[1] / "results" / "results.json")
    measured = [cell for cell in loaded.cells if cell.measured]
    assert measured
    for cell in measured:
        assert sum(turn.runs for turn in cell.rounds) == len(cell.samples_s)
    assert "1.63x PyTorch" in to_text(loaded)
    assert to_csv(loaded)


def test_every_form_has_the_same_ratio_to_pytorch(results: Results) -> None:
    """The quotient of the images per second that stand beside it."""
    assert "onnxruntime:fp32 · 2.5x PyTorch" in to_text(results)
    assert ". 2.5x PyTorch." in to_text(results).replace("\n", " ")
    assert re.search(r"onnxruntime-cpu:fp32 +\| +2 \| +6.25 \|.*\| +2.5x \|", to_markdown(results))
    rows = {(row["variant"], row["batch_size"]): row for row in csv.DictReader(io.StringIO(to_csv(results)))}
    row = rows["onnxruntime-cpu:fp32", "2"]
    assert float(row["vs_pytorch"]) == 6.25 / 2.5
    assert (row["vs_pytorch_base"]) == "pytorch-cpu:fp32 batch 1"


def test_markdown_has_the_same_figures(results: Results) -> None:
    markdown = re.sub(r" +", " ", to_markdown(results))
    assert "| onnxruntime-cpu:fp32 | 2 | 0.640 s | 160 | 6.25 | 0.0% | 130 MiB | 1.25x | 1.25x |" in markdown
    assert "| pytorch-cuda:fp32 | no driver | get one |" in markdown
    assert "| onnxruntime-cpu:fp32 batch 4 | out of memory: it is full | use less |" in markdown
    assert "| 4 | out of memory |" in markdown
    assert markdown.index("**Use ") < markdown.index("| variant") < markdown.index("<summary>Batch sizes")
    assert "<details>\n<summary>Environment</summary>\n\nMachine:\n" in markdown


def test_markdown_parses_as_tables_of_plain_text(hostile: Results) -> None:
    html = MarkdownIt("commonmark").enable("table").render(to_markdown(hostile))
    assert html.count("<table>") == html.count("</table>") >= 4
    assert "<script" not in html
    assert html.count("<summary>") == html.count("</details>") == 7
    assert "<img" not in html
    shown = unescape(re.sub(r"<[^>]*>", "", html))
    assert HOSTILE_SHOWN in shown


def test_text_fits_80_columns_with_any_names(hostile: Results) -> None:
    text = to_text(hostile, 80)
    text.encode("utf-8")
    too_long = [line for line in text.splitlines() if len(line) > 80]
    assert not [line for line in too_long if not line.startswith("  segx export") and "script" not in line]
    assert "\x1b" not in text
    assert "\a" not in text


def test_text_uses_the_width_of_the_terminal(results: Results) -> None:
    for columns in (60, 80, 100, 250):
        lines = to_text(results, columns).splitlines()
        assert max(map(len, lines)) <= columns


def test_csv_has_the_same_columns_for_every_bench(results: Results) -> None:
    def columns(some: Results) -> str:
        return to_csv(some).splitlines()[0]

    failed = tuple(cell for cell in results.cells if not cell.measured)
    assert columns(results) == columns(dataclasses.replace(results, cells=failed))
    assert "machine_id" in columns(results)


def test_csv_has_one_line_per_cell_and_no_formula(hostile: Results) -> None:
    text = to_csv(hostile)
    assert len(text.splitlines()) == 1 + len(hostile.cells)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert any(row["worst_image"].startswith("'=") for row in rows)
    assert not any(value.startswith("=") for row in rows for value in row.values())
    assert all(float(row["truth_loss"]) == -0.5 for row in rows if row["truth_loss"])


def test_csv_has_memory_cold_start_and_intervals(results: Results) -> None:
    row = next(csv.DictReader(io.StringIO(to_csv(results))))
    assert (row["import_s"], row["load_s"], row["first_s"]) == ("0.1", "0.2", "0.3")
    assert float(row["p50_low_s"]) == float(row["p50_high_s"]) == 0.4
    assert row["machine_id"] == machine_id(results)
    assert json.loads(row["facts"]) == {"threads": "2", "tf32": "off"}
    assert row["images_s_measured"] == "true"


HOSTILE = "=\x1b[31m|`<script>alert(1)</script>\n\n# **b** [a](b) ![x](y)\r\u202e\a" + "x" * 90
HOSTILE_SHOWN = "=\\x1b[31m|`<script>alert(1)</script> # **b** [a](b) ![x](y) \\u202e\\x07" + "x" * 90


@pytest.fixture
def hostile(results: Results, make_parity: Callable[..., Parity]) -> Results:
    """Every text that comes from outside does what it should not."""
    truth = TruthScore(
        iou=0.5, dice=0.5, reference_iou=0.0, reference_dice=0.0, loss=-0.5, loss_low=-1.0, loss_high=1.0
    )
    parity = make_parity(flipped_pixels=1, worst_image=HOSTILE, truth=truth)

    def spoilt(one: Cell) -> Cell:
        texts = {"reason": HOSTILE, "remedy": HOSTILE} if one.status != "ok" else {"parity": parity}
        return dataclasses.replace(one, **texts, facts={"threads": HOSTILE, "tf32": HOSTILE})

    return dataclasses.replace(
        results,
        segx=HOSTILE,
        created=HOSTILE,
        command=HOSTILE,
        reference=HOSTILE,
        cells=tuple(map(spoilt, results.cells)),
        model=dataclasses.replace(results.model, checkpoint=HOSTILE, weights_sha256=HOSTILE),
        inputs=dataclasses.replace(results.inputs, source=HOSTILE, sha256=HOSTILE, truth=HOSTILE),
        machine=dataclasses.replace(
            results.machine,
            cpu=HOSTILE,
            versions={HOSTILE: HOSTILE},
            variables={HOSTILE: HOSTILE},
            gpus=(Gpu(name=HOSTILE, memory_bytes=1, driver=HOSTILE),),
        ),
    )


def test_csv_has_a_line_per_cell_and_blanks_for_what_is_unknown(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(rows) == len(results.cells)
    assert rows[1]["status"] == "unavailable"
    assert not rows[1]["p50_s"]
    assert rows[0]["device_peak_bytes"] == ""
    assert float(rows[0]["host_needed_bytes"]) == 100 * 2**20


def test_results_round_trip(results: Results, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(to_json(results))
    assert load_results(tmp_path) == results
    assert json.loads(to_json(results))["schema_version"] == 1


def test_infinite_differences_survive_a_round_trip(
    results: Results, make_parity: Callable[..., Parity], tmp_path: Path
) -> None:
    parity = make_parity(max_abs_diff=float("inf"), mean_abs_diff=float("inf"))
    broken = dataclasses.replace(results, cells=(dataclasses.replace(results.cells[0], parity=parity),))
    (tmp_path / "r.json").write_text(to_json(broken))
    assert load_results(tmp_path / "r.json") == broken


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("[]", "not a segx results file"),
        ("{}", "not a segx results file"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', r"not valid at \$: object missing required field `created`"),
    ],
)
def test_foreign_results_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=complaint):
        load_results(tmp_path)


def test_missing_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="does not exist"):
        load_results(tmp_path)


SCENES = "37a56259c0b27f14c3160c4500ba61a4fe8dfc452a3c2a5ba98b2f4bf4b3ae28"


def _doubtful(results: Results, **changes: object) -> str:
    made = dataclasses.replace(results, **changes)  # type: ignore[arg-type]
    return " ".join(to_text(made, columns=10_000, details=True).split())


def test_it_is_said_how_images_are_prepared(results: Results) -> None:
    spec = ModelSpec(in_channels=3, height=224, width=320, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    shown = _doubtful(
        results,
        model=dataclasses.replace(results.model, spec=spec),
        reference_masks=ReferenceMasks(images=4, empty=1, full=0, truth_iou=0.8),
    )
    assert "images 4 images of photos; RGB [0, 1], mean/std ImageNet" in shown
    assert "preparation of images RGB [0, 1], mean/std ImageNet, 320x224" in shown
    assert "masks images 4, empty 1, full 0, truth IoU 0.8" in shown
    assert "reference's own masks" not in shown


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        (ReferenceMasks(images=10, empty=9, full=0), "masks are blank in 9 of 10 images (9 empty, 0 full)"),
        (ReferenceMasks(images=4, empty=0, full=4), "masks are blank in 4 of 4 images (0 empty, 4 full)"),
        (ReferenceMasks(images=4, empty=1, full=0, truth_iou=0.1), "far from the true ones (IoU 0.1000)"),
    ],
)
def test_a_reference_that_sees_nothing_is_a_warning_with_options_to_try(
    results: Results, masks: ReferenceMasks, told: str
) -> None:
    shown = _doubtful(results, reference_masks=masks)
    assert told in shown
    assert "--normalize imagenet, --input-range 0-255, --input-size" in shown


def test_a_doubt_of_how_images_are_prepared_is_a_warning(results: Results) -> None:
    doubted = dataclasses.replace(results.inputs, doubt="images look odd")
    assert "Images look odd." in _doubtful(results, inputs=doubted)


def test_earlier_exports_of_the_same_weights_with_other_pixels_are_a_warning(results: Results) -> None:
    model = dataclasses.replace(results.model, other_pixels=("gray [0, 1], mean/std ImageNet",))
    assert "exported before for images in gray [0, 1], mean/std ImageNet, now gray" in _doubtful(results, model=model)


@pytest.mark.parametrize(
    ("weights", "calibration", "doubted"),
    [("ab" * 32, None, True), ("ab" * 32, "/photos", False), (SCENES, None, False)],
)
def test_int8_of_a_foreign_model_on_generated_scenes_is_not_to_be_trusted(
    results: Results, weights: str, calibration: str | None, *, doubted: bool
) -> None:
    cells = tuple(dataclasses.replace(each, precision="int8") for each in results.cells)
    shown = _doubtful(
        results,
        cells=cells,
        model=dataclasses.replace(results.model, weights_sha256=weights),
        options=dataclasses.replace(results.options, precisions=("int8",), calibration=calibration),
    )
    assert ("do not trust its masks" in shown) is doubted
    assert f"int8 calibrated on {calibration or 'generated scenes'}" in shown


def test_a_judgement_on_few_images_is_said_to_be_one(results: Results, make_parity: Callable[..., Parity]) -> None:
    """Only where masks differ: identical ones need no judgement."""
    told = "Too few images to judge masks: 4, and at least 6 are needed."
    changed = tuple(dataclasses.replace(each, parity=make_parity(flipped_pixels=3)) for each in results.cells)
    assert told in _doubtful(results, cells=changed)
    names = tuple(f"image {number}" for number in range(6))
    enough = dataclasses.replace(results.inputs, names=names)
    assert "Too few images" not in _doubtful(results, cells=changed, inputs=enough)
    same = tuple(dataclasses.replace(each, parity=make_parity()) for each in results.cells)
    assert "Too few images" not in _doubtful(results, cells=same)
    int8 = DerivedFile(path="/m-int8.onnx", sha256="ab" * 32, calibration_images=3, held_out_images=2)
    shown = _doubtful(
        results,
        cells=tuple(dataclasses.replace(each, precision="int8") for each in results.cells),
        model=dataclasses.replace(results.model, derived={"int8-openvino": int8}),
        options=dataclasses.replace(results.options, precisions=("int8",), calibration="/photos"),
    )
    assert "its layers were chosen by 2 held-out images, and at least 6 are needed" in shown
    assert "int8 calibrated on /photos" in shown
    assert re.search("file for int8-openvino:? /m-int8.onnx, SHA-256 (ab)+, calibration images 3", shown)


@pytest.mark.parametrize("has_margin", [True, False, None])
def test_an_int8_file_that_lacks_a_margin_is_named(results: Results, has_margin: bool | None) -> None:
    int8 = DerivedFile(path="/a/m-int8.onnx", sha256="ab" * 32, has_margin=has_margin)
    model = dataclasses.replace(results.model, derived={"int8-openvino": int8})
    told = "m-int8.onnx: no choice of float layers meets the limits on masks by a margin"
    as_int8 = tuple(dataclasses.replace(each, precision="int8") for each in results.cells)
    shown = _doubtful(results, cells=as_int8, model=model)
    assert (told in shown) is (has_margin is False)
    assert (f"meets the limits by a margin: {'yes' if has_margin else 'no'}" in shown) is (has_margin is not None)
    assert told not in _doubtful(results, model=model)  # nothing was measured in int8


def test_masks_that_are_blank_in_all_images_judge_nothing(results: Results) -> None:
    def blank(each: Cell) -> Cell:
        parity = each.parity and dataclasses.replace(each.parity, blank_images=each.parity.images)
        return dataclasses.replace(each, parity=parity)

    shown = _doubtful(dataclasses.replace(results, cells=tuple(map(blank, results.cells))))
    assert "not judged" in shown
    assert "identical" not in shown
    assert "Masks: not judged: the reference's are blank in all 4 images" in shown


def test_settings_are_a_matrix_for_each_engine() -> None:
    document = bench_document(load_results(Path(__file__).parents[1] / "results" / "eight.json"))
    tables = [block for block in document.blocks("environment") if isinstance(block, Table)]
    titles = [tuple(column.title for column in table.columns) for table in tables]
    assert len(set(titles)) == len(titles)
    variants = [row[0].text for table in tables for row in table.rows]
    assert len(variants) == len(set(variants)) > len(tables)
