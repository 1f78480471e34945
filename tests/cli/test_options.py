from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, reject
from hypothesis import strategies as st

from segx.bench import api
from segx.cli import options
from segx.cli.bench import bench
from segx.cli.options import (
    BYTES,
    NAME_VALUE,
    NUMBERS,
    POSITIVE_INTEGERS,
    SECONDS,
    SIZE,
    model_options,
    resolve_spec,
    resolve_weights,
    spec_overrides,
)
from segx.errors import UsageError
from segx.export.import_onnx import READING
from segx.model.spec import ModelSpec

Parse = Callable[..., tuple[Any, Result]]


@pytest.fixture
def parse() -> Parse:
    """The value that click hands to a command, and what came out of it."""

    def run(kind: Any, text: str) -> tuple[Any, Result]:
        seen: list[Any] = []

        @click.command()
        @click.option("--value", type=kind)
        def command(value: Any) -> None:
            seen.append(value)

        result = CliRunner().invoke(command, ["--value", text])
        return (seen[0] if seen else None), result

    return run


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (SECONDS, "5", 5.0),
        (SECONDS, "5s", 5.0),
        (SECONDS, "500ms", 0.5),
        (SECONDS, "1.5 m", 90.0),
        (SECONDS, "2H", 7200.0),
        (SECONDS, ".5s", 0.5),
        (SECONDS, "0", 0.0),
        (SECONDS, " 3s ", 3.0),
        (BYTES, "1024", 1024.0),
        (BYTES, "2GB", 2e9),
        (BYTES, "2gib", 2.0 * 2**30),
        (BYTES, "0.5 MiB", 2.0**19),
        (BYTES, "3kB", 3000.0),
        (POSITIVE_INTEGERS, "1, 2,4", (1, 2, 4)),
        (POSITIVE_INTEGERS, "1", (1,)),
        (NUMBERS, "0.5,1e-3,-2", (0.5, 0.001, -2.0)),
        (SIZE, "256", (256, 256)),
        (SIZE, "640x480", (640, 480)),
        (SIZE, " 640X480 ", (640, 480)),
        (NAME_VALUE, "a=1", ("a", 1)),
        (NAME_VALUE, "a=[1, 2]", ("a", [1, 2])),
        (NAME_VALUE, "a=null", ("a", None)),
        (NAME_VALUE, "a=false", ("a", False)),
        (NAME_VALUE, "a=scse", ("a", "scse")),
        (NAME_VALUE, "a=b=c", ("a", "b=c")),
        (NAME_VALUE, "a=", ("a", "")),
    ],
)
def test_text_becomes_a_value(parse: Parse, kind: Any, text: str, value: Any) -> None:
    seen, result = parse(kind, text)
    assert result.exit_code == 0, result.output
    assert seen == pytest.approx(value) if isinstance(value, float) else seen == value


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (SECONDS, "fast", "500ms"),
        (SECONDS, "-5s", "500ms"),
        (SECONDS, "5 years", "500ms"),
        (SECONDS, "", "500ms"),
        (SECONDS, "1e3", "500ms"),
        (SECONDS, "nan", "500ms"),
        (SECONDS, "9" * 310, "too large"),
        (BYTES, "9" * 310, "too large"),
        (BYTES, "2 potatoes", "512MiB"),
        (BYTES, "GB", "512MiB"),
        (POSITIVE_INTEGERS, "1,,2", "1,2,4"),
        (POSITIVE_INTEGERS, "", "1,2,4"),
        (POSITIVE_INTEGERS, "1.5", "1,2,4"),
        (POSITIVE_INTEGERS, "4,0", "at least 1"),
        (NUMBERS, "a,b", "1,2,4"),
        (SIZE, "large", "640x480"),
        (SIZE, "640x", "640x480"),
        (SIZE, "-1", "640x480"),
        (SIZE, "1x2x3", "640x480"),
        (NAME_VALUE, "a", "NAME=VALUE"),
        (NAME_VALUE, "=1", "NAME=VALUE"),
    ],
)
def test_invalid_text_is_wrong_usage_and_shows_an_example(parse: Parse, kind: Any, text: str, told: str) -> None:
    _, result = parse(kind, text)
    assert result.exit_code == 2
    assert told in result.output
    assert repr(text) in result.output


@pytest.mark.parametrize(
    ("kind", "default"), [(SECONDS, 2.5), (BYTES, 100), (POSITIVE_INTEGERS, (1, 2)), (SIZE, (3, 4)), (NUMBERS, (0.5,))]
)
def test_a_default_that_is_already_a_value_passes(kind: Any, default: Any) -> None:
    assert kind.convert(default, None, None) == default


@pytest.fixture
def overrides() -> Callable[..., dict[str, Any]]:
    """What the model options of a command line mean."""

    def run(*arguments: str) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []
        command = click.command()(model_options(lambda **given: seen.append(spec_overrides(**given))))
        result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[0]

    return run


def test_no_option_overrides_nothing(overrides: Callable[..., dict[str, Any]]) -> None:
    assert overrides() == {}


def test_every_model_option_arrives_in_the_spec(overrides: Callable[..., dict[str, Any]]) -> None:
    given = overrides(
        *("--arch", "Unet", "--encoder", "resnet18", "--encoder-depth", "3", "--decoder-channels", "16,8,8"),
        *("--in-channels", "3", "--classes", "2", "--multilabel", "--input-size", "96x64", "--threshold", "0.4"),
        *("--mean", "0.1,0.2,0.3", "--std", "1,2,3", "--input-range", "0-255", "--channel-order", "bgr"),
        *("--resize", "letterbox", "--white-level", "4095"),
        *("--model-arg", "decoder_attention_type=scse", "--model-arg", "decoder_use_norm=false"),
    )
    assert ModelSpec.with_overrides(None, given) == ModelSpec(
        arch="Unet",
        encoder_name="resnet18",
        in_channels=3,
        classes=2,
        height=64,
        width=96,
        threshold=0.4,
        multilabel=True,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        input_range="0-255",
        channel_order="bgr",
        resize="letterbox",
        white_level=4095.0,
        arguments={
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
            "decoder_attention_type": "scse",
            "decoder_use_norm": False,
        },
    )


def test_every_option_of_bench_is_an_argument_or_a_field_that_it_fills() -> None:
    assert bench.callback
    arguments = set(inspect.signature(bench.callback).parameters)
    model = {*inspect.signature(spec_overrides).parameters, *ModelSpec.__dataclass_fields__, *READING}
    kinds = (api.DataOptions, api.SamplingOptions, api.EngineOptions, api.Limits, api.Gate)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    names = {option.name for option in bench.params if option.expose_value}
    assert names <= arguments | model | fields | {"batch_sizes"}


def test_overrides_survive_the_manifest(overrides: Callable[..., dict[str, Any]]) -> None:
    spec = ModelSpec.with_overrides(None, overrides("--decoder-channels", "8,8,8,8", "--mean", "0.5"))
    assert ModelSpec.from_json(spec.to_json()) == spec


_CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "arch": st.sampled_from(["UnetPlusPlus", "Unet", "FPN"]),
    "encoder_name": st.sampled_from(["resnet18", "mit_b0"]),
    "in_channels": st.sampled_from([1, 3]),
    "classes": st.integers(1, 256),
    "height": st.integers(1, 4096),
    "width": st.integers(1, 4096),
    "threshold": st.floats(0.01, 0.99),
    "input_range": st.sampled_from(["0-1", "0-255"]),
    "resize": st.sampled_from(["antialias", "linear", "letterbox"]),
    "white_level": st.floats(1, 65535),
    "normalize": st.sampled_from(["none", "imagenet", "inception"]),
    "checkpoint_key": st.sampled_from(["ema", "state_dict"]),
    "arguments": st.dictionaries(
        st.sampled_from(["encoder_depth", "decoder_channels", "decoder_attention_type", "decoder_use_norm"]),
        st.integers(1, 5) | st.lists(st.integers(1, 64), min_size=1, max_size=5) | st.sampled_from(["scse", "1"]),
        max_size=3,
    ),
}


@given(st.booleans(), st.fixed_dictionaries({}, optional=_CHANGES), st.fixed_dictionaries({}, optional=_CHANGES))
def test_options_of_a_spec_give_that_spec_again(
    has_base: bool, base_changes: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        base = ModelSpec.with_overrides(None, base_changes) if has_base else None
        spec = ModelSpec.with_overrides(base, changes)
    except UsageError:  # mean and std of the base for another number of channels, or a threshold without effect
        reject()
    seen: list[dict[str, Any]] = []
    command = click.command()(model_options(lambda **given: seen.append(spec_overrides(**given))))
    result = CliRunner().invoke(command, list(spec.options(base)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert ModelSpec.with_overrides(base, seen[0]) == spec


@pytest.mark.parametrize("text", ["--mean=nan", "--std=nan", "--std=0", "--mean=inf", "--threshold=1"])
def test_invalid_model_options_are_wrong_usage(overrides: Callable[..., dict[str, Any]], text: str) -> None:
    given = overrides(text)
    with pytest.raises(UsageError):
        ModelSpec.with_overrides(None, given)


def test_normalize_and_mean_exclude_each_other() -> None:
    command = click.command()(model_options(spec_overrides))
    result = CliRunner().invoke(command, ["--normalize", "imagenet", "--std", "1"])
    assert result.exit_code == 2
    assert "leave --mean and --std out" in result.output


def test_given_weights_are_used(tmp_path: Path) -> None:
    assert resolve_weights(tmp_path / "a.pt") == tmp_path / "a.pt"


def test_the_shipped_weights_are_the_default(shipped_checkpoint: Path) -> None:
    assert resolve_weights(None) == shipped_checkpoint
    assert shipped_checkpoint.is_file()


def test_an_installation_without_weights_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "SHIPPED_WEIGHTS", tmp_path / "absent.safetensors")
    with pytest.raises(UsageError) as caught:
        resolve_weights(None)
    assert "--weights" in caught.value.hint


def test_the_spec_comes_from_the_checkpoint_and_the_user(shipped_checkpoint: Path) -> None:
    assert resolve_spec(shipped_checkpoint, {}) == ModelSpec()
    assert resolve_spec(shipped_checkpoint, {"threshold": 0.3}) == ModelSpec(threshold=0.3)


def test_the_key_of_a_checkpoint_is_part_of_the_spec(tmp_path: Path, overrides: Callable[..., dict[str, Any]]) -> None:
    import torch

    state = {"encoder.conv1.weight": torch.ones(2), "segmentation_head.0.bias": torch.ones(1)}
    torch.save({"model": state, "ema": state}, tmp_path / "a.pt")
    given = overrides("--checkpoint-key", "ema")
    assert resolve_spec(tmp_path / "a.pt", given) == ModelSpec(checkpoint_key="ema")


def test_the_key_of_a_checkpoint_has_no_effect_without_one(
    tiny_onnx: Path, overrides: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(UsageError, match="--checkpoint-key"):
        resolve_spec(None, overrides("--checkpoint-key", "ema"), onnx=tiny_onnx)


def test_a_quick_bench_leaves_out_what_starts_slowly_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    asked: list[str] = []

    def benchmark(*_: object, runtimes: tuple[str, ...], **__: object) -> None:
        asked[:] = runtimes
        raise UsageError("enough", hint="stop")

    monkeypatch.setattr(api, "benchmark", benchmark)
    command = ["--quick", "--weights", str(tiny_checkpoint), "--runtime"]
    result = CliRunner().invoke(bench, [*command, "all"])
    slow = {"torch-compile-cpu", "onnxruntime-web"}
    assert not slow & {*asked}
    assert {"pytorch-cpu", "onnxruntime-cpu"} <= {*asked}
    assert all(name in result.stderr for name in slow)
    CliRunner().invoke(bench, [*command, "all,onnxruntime-web"])
    assert slow & {*asked} == {"onnxruntime-web"}
