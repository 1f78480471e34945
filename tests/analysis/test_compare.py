"""Two saved benches side by side."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segx.analysis.compare import CellComparison, compare
from segx.analysis.stats import mann_whitney_p
from segx.errors import NotComparable
from segx.model.spec import ModelSpec
from segx.results.provenance import ALLOWANCES
from segx.results.store import to_json
from segx.results.types import Cell, Results, Round

MakeResults = Callable[..., Results]


def cell(call_s: float, *, batch_size: int = 1, seed: int = 0, rounds: int = 20, noise: float = 0.01) -> Cell:
    factors = np.random.default_rng(seed).normal(1.0, noise, size=rounds)
    samples = tuple(float(call_s * factor) for factor in factors)
    return Cell(
        runtime="onnxruntime-cpu",
        precision="fp32",
        batch_size=batch_size,
        status="ok",
        samples_s=samples,
        rounds=tuple(Round(number=i, runs=1) for i in range(rounds)),
    )


@pytest.fixture
def results(make_results: MakeResults) -> MakeResults:
    return make_results


def only(before: Results, after: Results) -> CellComparison:
    (comparison,) = compare(before, after)
    return comparison


@pytest.mark.parametrize(("after_s", "verdict"), [(0.1, "tied"), (0.11, "slower"), (0.09, "faster")])
def test_verdicts(after_s: float, verdict: str, results: MakeResults) -> None:
    comparison = only(results(cell(0.1, seed=1)), results(cell(after_s, seed=2)))
    assert comparison.verdict == verdict
    assert comparison.speedup
    assert comparison.speedup.ratio == pytest.approx(0.1 / after_s, rel=0.02)
    assert comparison.p_value is not None
    assert (comparison.p_value > 0.01) == (verdict == "tied")


def test_a_regression_must_be_sure_and_large_enough(results: MakeResults) -> None:
    slower = only(results(cell(0.1, seed=1)), results(cell(0.11, seed=2)))
    assert slower.regressed_by(0.05)
    assert not slower.regressed_by(0.15)
    noisy = only(results(cell(0.1, seed=1, noise=0.5)), results(cell(0.11, seed=2, noise=0.5)))
    assert not noisy.regressed_by(0.05)


def test_too_few_rounds_are_unsure_and_have_no_test(results: MakeResults) -> None:
    comparison = only(results(cell(0.1, rounds=5)), results(cell(0.2, rounds=5)))
    assert comparison.verdict == "unsure"
    assert comparison.p_value is None
    assert not comparison.regressed_by(0.0)


def test_cells_of_one_run_only_are_lost_or_gained(results: MakeResults) -> None:
    before, after = results(cell(0.1), cell(0.2, batch_size=2)), results(cell(0.1))
    assert [c.verdict for c in compare(before, after)] == ["tied", "lost"]
    assert [c.verdict for c in compare(after, before)] == ["tied", "gained"]
    assert compare(before, after)[1].regressed_by(0.5)


@pytest.mark.parametrize("field", ALLOWANCES)
def test_what_differs_is_refused_by_name_with_both_values_unless_allowed(field: str, results: MakeResults) -> None:
    one = results(cell(0.1))
    other = {
        "weights": dataclasses.replace(one, model=dataclasses.replace(one.model, weights_sha256="c" * 64)),
        "spec": dataclasses.replace(one, model=dataclasses.replace(one.model, spec=ModelSpec(threshold=0.4))),
        "inputs": dataclasses.replace(one, inputs=dataclasses.replace(one.inputs, sha256="d" * 64)),
        "host": dataclasses.replace(one, machine=dataclasses.replace(one.machine, cpu="B CPU")),
        "threads": dataclasses.replace(one, options=dataclasses.replace(one.options, threads=4)),
        "memory_profile": dataclasses.replace(one, options=dataclasses.replace(one.options, memory_profile="low")),
    }[field]
    with pytest.raises(NotComparable, match=f"differ in {field}: .+ against .+") as caught:
        compare(one, other)
    assert f"--allow {field}" in caught.value.hint
    if field == "spec":
        assert "threshold 0.5 against threshold 0.4" in caught.value.message
    assert compare(one, other, allow=[field])


@given(
    st.lists(st.integers(0, 30).map(float), min_size=9, max_size=60),
    st.lists(st.integers(0, 30).map(float), min_size=9, max_size=60),
)
def test_mann_whitney_agrees_with_scipy(a: list[float], b: list[float]) -> None:
    from scipy.stats import mannwhitneyu

    if len({*a, *b}) == 1:
        assert mann_whitney_p(a, b) == 1.0
        return
    assert mann_whitney_p(a, b) == pytest.approx(mannwhitneyu(a, b, method="asymptotic").pvalue, abs=1e-9)


def segx(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segx", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_gates_on_a_regression(tmp_path: Path, results: MakeResults) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(to_json(results(cell(0.1, seed=1))))
    after.write_text(to_json(results(cell(0.12, seed=2))))
    shown = segx(before, after)
    assert shown.returncode == 0
    assert "slower" in shown.stdout
    failed = segx(before, after, "--fail-on-regression", "5%")
    assert failed.returncode == 3
    assert "onnxruntime-cpu:fp32 batch 1" in failed.stderr
    assert segx(after, before, "--fail-on-regression", "5%").returncode == 0
    assert segx(before, tmp_path / "missing").returncode == 1
    assert segx(before, after, "--fail-on-regression", "fast").returncode == 2
