from __future__ import annotations

import argparse
import collections
import contextlib
import datetime as dt
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from segx.errors import CheckpointError, SegxError
from segx.model import checkpoint
from segx.model.checkpoint import (
    checkpoint_digest,
    described,
    model_spec,
    read_state_dict,
    weights_file,
)
from segx.model.spec import METADATA_KEY, ModelSpec
from tests.mutations import damaged, damaged_json, few_or_many, read_all

if TYPE_CHECKING:
    import torch

Block = Callable[[], AbstractContextManager[None]]
State = dict[str, "torch.Tensor"]


@pytest.fixture
def state() -> State:
    import torch

    names = ("encoder.conv1.weight", "encoder.bn1.running_mean", "decoder.blocks.0.weight", "segmentation_head.0.bias")
    return {name: torch.arange(4.0).reshape(2, 2) + i for i, name in enumerate(names)}


def _save(content: object, path: Path, *, as_zip: bool = True) -> Path:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


def _assert_same(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    assert all(got[name].equal(expected[name]) for name in expected)


# What is read


def test_safetensors_are_read(tmp_path: Path, state: State) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    got = read_state_dict(tmp_path / "a.safetensors")
    assert got.keys() == state.keys()
    assert all(got[name].equal(state[name]) for name in state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_state_dicts_are_read(tmp_path: Path, state: State, suffix: str, as_zip: bool) -> None:
    _assert_same(read_state_dict(_save(state, tmp_path / f"a{suffix}", as_zip=as_zip)), state)


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "two deep": lambda state: {"state_dict": {"model": state}},
    "three deep": lambda state: {"model": {"state_dict": {"model_state_dict": state}}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("as_zip", [True, False])
def test_wrapped_state_dicts_are_read(tmp_path: Path, state: State, wrapping: str, as_zip: bool) -> None:
    path = _save(WRAPPINGS[wrapping](state), tmp_path / "a.pt", as_zip=as_zip)
    _assert_same(read_state_dict(path), state)


def test_a_tensor_beside_the_wrapped_weights_does_not_hide_them(tmp_path: Path, state: State) -> None:
    import torch

    path = _save({"model": state, "best_iou": torch.tensor(0.9)}, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "module.model.", "_orig_mod.module.", "model._orig_mod.", "module.module."],
)
def test_prefixes_of_training_wrappers_are_removed(tmp_path: Path, state: State, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    _assert_same(read_state_dict(_save({"state_dict": wrapped}, tmp_path / "a.ckpt")), state)


def test_what_lightning_keeps_beside_the_model_is_left_out(tmp_path: Path, state: State) -> None:
    import torch

    wrapped = {"mean": torch.ones(3), "loss.weight": torch.ones(2)}
    wrapped |= {f"model.{name}": tensor for name, tensor in state.items()}
    wrapped["metric.total"] = torch.ones(1)
    content = {"state_dict": wrapped, "epoch": 1, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}}
    _assert_same(read_state_dict(_save(content, tmp_path / "a.ckpt")), state)


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path: Path, state: State) -> None:
    import torch

    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{name}": tensor for name, tensor in state.items()}
    _assert_same(read_state_dict(_save(averaged, tmp_path / "a.pt")), state)


@pytest.mark.parametrize("prefix", ["net.", "unet.", "model.net.", "module.segmentation.backbone."])
def test_one_unknown_prefix_is_removed_and_said(
    tmp_path: Path, state: State, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    model_spec(path)
    assert f"a.pt: the weights under '{prefix.strip('.')}' are used" in caplog.messages


@pytest.mark.parametrize("key", ["net", "weights", "network", "params", "best", "segmentation_model"])
def test_one_unknown_key_is_found_and_said(
    tmp_path: Path, state: State, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save({"epoch": 3, key: state, "optimizer": {"state": {0: {}}}}, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    model_spec(path)
    assert caplog.messages == [f"a.pt: the weights under '{key}' are used"]


def test_well_known_keys_are_not_worth_a_word(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    model_spec(_save({"state_dict": {f"model.{name}": each for name, each in state.items()}}, tmp_path / "a.ckpt"))
    assert not caplog.messages


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# Files with trained weights T and averaged ones A -> the key of the averaged ones.
AVERAGED: dict[str, tuple[str, Callable[[State, State], Any]]] = {
    "prefix, averaged first": (
        "ema_model",
        lambda t, a: {"state_dict": _prefixed("ema_model.module.", a) | _prefixed("model.", t)},
    ),
    "prefix, averaged last": ("ema", lambda t, a: {"state_dict": _prefixed("model.", t) | _prefixed("ema.module.", a)}),
    "no prefix": ("model_ema", lambda t, a: t | _prefixed("model_ema.", a)),
    "unknown prefix": ("ema_net", lambda t, a: _prefixed("ema_net.", a) | _prefixed("net.", t)),
    "keys": ("state_dict_ema", lambda t, a: {"state_dict_ema": a, "state_dict": t}),
    "keys, unknown": ("ema", lambda t, a: {"ema": a, "net": t}),
    "nested": ("ema", lambda t, a: {"ema": {"module": a, "decay": 0.99}, "model": _prefixed("module.", t)}),
    "shadow": ("swa", lambda t, a: {"model": t, "swa": {"shadow": a}}),
    "upper case": ("ModelEMA", lambda t, a: {"ModelEMA": a, "model": t}),
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_trained_weights_are_used_and_averaged_ones_offered(
    tmp_path: Path, state: State, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = {name: tensor + 100 for name, tensor in state.items()}
    key, wrap = AVERAGED[kind]
    path = _save(wrap(state, averaged), tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    _assert_same(read_state_dict(path, key), averaged)
    model_spec(path)
    assert any(f"averaged (EMA) weights: --checkpoint-key {key}" in message for message in caplog.messages)
    caplog.clear()
    assert model_spec(path, {"checkpoint_key": key}).checkpoint_key == key
    assert any(f"the averaged (EMA) weights under '{key}' are used" in message for message in caplog.messages)


@pytest.mark.parametrize("key", ["ema", "state_dict_ema", "model_ema", "ema_state_dict"])
def test_averaged_weights_alone_are_used(
    tmp_path: Path, state: State, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save({"epoch": 3, key: state}, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    model_spec(path)
    assert caplog.messages == [f"a.pt: the averaged (EMA) weights under '{key}' are used"]


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, state: State) -> None:
    path = _save({"model": state, "ema": state}, tmp_path / "a.pt")
    for read in (lambda: read_state_dict(path, "emma"), lambda: model_spec(path, {"checkpoint_key": "emma"})):
        with pytest.raises(CheckpointError, match="'emma'") as caught:
            read()
        assert "model" in caught.value.hint
        assert "ema" in caught.value.hint


def test_weights_in_a_list_are_chosen_by_their_number(tmp_path: Path, state: State) -> None:
    folds = [{name: tensor + fold for name, tensor in state.items()} for fold in range(3)]
    path = _save({"folds": folds}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="3 sets of weights"):
        read_state_dict(path)
    _assert_same(read_state_dict(path, "1"), folds[1])


def test_what_is_left_out_beside_a_model_is_said(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    wrapped = _prefixed("unet.", state) | {"refine.weight": torch.ones(2)}
    path = _save(wrapped, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    model_spec(path)
    assert "a.pt: what is beside the model is left out: refine.weight" in caplog.messages


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_within_the_model_are_removed(tmp_path: Path, state: State, wrapper: str) -> None:
    wrapped = {name.replace(".", f".{wrapper}", 1): tensor for name, tensor in state.items()}
    _assert_same(read_state_dict(_save(_prefixed("model.", wrapped), tmp_path / "a.pt")), state)


def test_several_unknown_sets_of_weights_are_a_question(tmp_path: Path, state: State) -> None:
    path = _save({"net_a": state, "net_b": {name: t + 1 for name, t in state.items()}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="net_a, net_b") as caught:
        read_state_dict(path)
    assert "--checkpoint-key net_a" in caught.value.hint
    _assert_same(read_state_dict(path, "net_a"), state)


def test_averaged_weights_of_safetensors_are_chosen_too(tmp_path: Path, state: State) -> None:
    from safetensors.torch import save_file

    averaged = {name: tensor + 100 for name, tensor in state.items()}
    save_file(_prefixed("ema.", averaged) | _prefixed("model.", state), tmp_path / "a.safetensors")
    for key, expected in (("", state), ("ema", averaged)):
        got = read_state_dict(tmp_path / "a.safetensors", key)
        assert all(got[name].equal(expected[name]) for name in expected)


def test_an_auxiliary_head_is_left_out_and_said(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    path = _save(state | {"classification_head.3.weight": torch.ones(2)}, tmp_path / "a.pt")
    _assert_same(read_state_dict(path), state)
    model_spec(path)
    assert caplog.messages == ["a.pt: its auxiliary classification head is left out"]


def test_tensors_keep_their_type_and_come_to_the_cpu(tmp_path: Path) -> None:
    import torch

    state = {f"encoder.{i}": torch.ones(2).to(kind) for i, kind in enumerate([torch.float16, torch.bfloat16])}
    got = read_state_dict(_save(state, tmp_path / "a.pt"))
    assert [tensor.dtype for tensor in got.values()] == [torch.float16, torch.bfloat16]
    assert {tensor.device.type for tensor in got.values()} == {"cpu"}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_weights_is_read(tmp_path: Path, state: State, name: str) -> None:
    from safetensors.torch import save_file

    if name.endswith("bin"):
        _save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    assert weights_file(tmp_path) == tmp_path / name
    assert read_state_dict(tmp_path).keys() == state.keys()


def test_digest_is_that_of_the_weights_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    expected = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert checkpoint_digest(tiny_checkpoint) == expected
    shutil.copy(tiny_checkpoint, tmp_path / "model.safetensors")
    assert checkpoint_digest(tmp_path) == expected


# What is never run


class _Runs:
    """Runs a function of one argument when it is unpickled."""

    def __init__(self, function: Callable[[str], Any], argument: str) -> None:
        self._call = function, (argument,)

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return self._call


def _evil(kind: str, trace: Path) -> _Runs:
    if kind == "system":
        return _Runs(os.system, f"touch {trace}")
    return _Runs(eval, f"open({str(trace)!r}, 'w').close()")


def _refused(path: Path, trace: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert not trace.exists()
    assert path.name in caught.value.message
    return caught.value


@pytest.mark.parametrize("kind", ["system", "eval"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_torch_file_is_named_and_not_run(tmp_path: Path, state: State, kind: str, as_zip: bool) -> None:
    trace = tmp_path / "trace"
    path = _save({"state_dict": state, "x": _evil(kind, trace)}, tmp_path / "evil.pt", as_zip=as_zip)
    error = _refused(path, trace)
    assert f".{kind}" in error.message
    assert "if you trust its origin" in error.hint


@pytest.mark.parametrize("kind", ["system", "eval"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_named_and_not_run(tmp_path: Path, kind: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": _evil(kind, trace)}, protocol))
    assert f".{kind}" in _refused(tmp_path / "evil.pth", trace).message


def test_code_hidden_behind_an_earlier_string_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    module = os.system.__module__
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({module: 1, "x": _evil("system", trace)}, 4))
    assert f"{module}.system" in _refused(tmp_path / "evil.pth", trace).message


def test_code_behind_many_kinds_of_tensors_is_named(tmp_path: Path) -> None:
    import torch

    trace = tmp_path / "trace"
    kinds = [torch.bfloat16, torch.float64, torch.int32, torch.uint8]
    content: dict[str, Any] = {str(kind): torch.ones(2).to(kind) for kind in kinds}
    path = _save(content | {"x": _evil("system", trace)}, tmp_path / "evil.pt")
    assert ".system" in _refused(path, trace).message


PLAIN_DATA: dict[str, Callable[[], Any]] = {
    "a NumPy number": lambda: np.float64(0.83),
    "a NumPy array": lambda: np.arange(4.0),
    "NumPy text": lambda: np.array(["a", "b"]),
    "a NumPy type": lambda: np.dtype("float32"),
    "a namespace": lambda: argparse.Namespace(lr=1e-3, encoder="resnet18"),
    "a path": lambda: Path("runs/1"),
    "a date": lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "a range": lambda: range(3),
    "a dictionary of counts": lambda: collections.defaultdict(int, a=1),
    "a type": lambda: str,
    "a counter": lambda: collections.Counter("abc"),
    "a dictionary with a default": lambda: collections.defaultdict(list, {"loss": [1.0]}),
    "a set": lambda: {1, 2},
    "an optimizer to be made": lambda: functools.partial(dict, lr=0.1),
    "bytes": lambda: b"\x00\xff",
    "a complex number": lambda: 1j,
}


@pytest.mark.parametrize("kind", PLAIN_DATA)
@pytest.mark.parametrize("as_zip", [True, False])
def test_plain_data_beside_the_weights_does_not_hide_them(
    tmp_path: Path, state: State, kind: str, as_zip: bool
) -> None:
    path = _save({"state_dict": state, "kept": PLAIN_DATA[kind]()}, tmp_path / "a.pt", as_zip=as_zip)
    _assert_same(read_state_dict(path), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, state: State, protocol: int, as_zip: bool) -> None:
    import torch

    torch.save({"model": state}, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
    _assert_same(read_state_dict(tmp_path / "a.pt"), state)


def test_a_state_dict_of_the_pickle_module_is_read(tmp_path: Path, state: State) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state))
    _assert_same(read_state_dict(tmp_path / "a.pkl"), state)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_tensors_of_every_type_and_layout_are_read_as_torch_reads_them(
    tmp_path: Path, dtype: str, as_zip: bool
) -> None:
    import torch

    whole = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    views = {
        "whole": whole,
        "row": whole[1],
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "one": whole[2, 3],
        "no": whole[:0],
    }
    state = {f"encoder.{name}": view for name, view in views.items()}
    state["encoder.trained"] = torch.nn.Parameter(torch.ones(2))
    path = _save(state, tmp_path / "a.pt", as_zip=as_zip)
    got = read_state_dict(path)
    for name, expected in torch.load(path, weights_only=True).items():
        assert got[name].equal(expected)
        assert got[name].dtype == expected.dtype


MODULES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda module: module,
    "in a dictionary": lambda module: {"epoch": 3, "model": module},
    "deeper": lambda module: {"model": {"net": module}, "args": argparse.Namespace(lr=0.1)},
    "in DataParallel": lambda module: _module("torch.nn.DataParallel", module),
    "in a container": lambda module: _module("torch.nn.Sequential", module),
}


def _module(name: str, inner: Any) -> Any:
    import torch

    return torch.nn.DataParallel(inner) if name.endswith("DataParallel") else torch.nn.Sequential(inner)


@pytest.mark.parametrize("wrapping", MODULES)
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_whole_module_tells_its_weights_and_its_architecture(tmp_path: Path, wrapping: str, as_zip: bool) -> None:
    import segmentation_models_pytorch as smp

    module = smp.Unet(
        "resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=[32, 16, 8], in_channels=1, classes=2
    )
    path = _save(MODULES[wrapping](module), tmp_path / "whole.pt", as_zip=as_zip)
    _assert_same(read_state_dict(path), module.state_dict())
    spec = described(path).spec
    assert spec is not None
    assert (spec.arch, spec.encoder_name, spec.in_channels, spec.classes) == ("Unet", "resnet18", 1, 2)
    assert spec.arguments["encoder_depth"] == 3
    assert spec.arguments["decoder_channels"] == [32, 16, 8]


def test_the_spec_of_a_whole_module_is_that_of_its_json(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    spec = described(_save(smp.Unet("resnet18", encoder_weights=None), tmp_path / "whole.pt")).spec
    assert spec is not None
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_whole_module_of_an_older_library_tells_its_encoder(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    module = smp.FPN("resnet18", encoder_weights=None, encoder_depth=4, in_channels=1, classes=3)
    module._hub_mixin_config = None
    spec = described(_save(module, tmp_path / "old.pt")).spec
    expected = ModelSpec(arch="FPN", encoder_name="resnet18", classes=3, arguments={"encoder_depth": 4})
    assert spec == expected


def _model(**arguments: Any) -> Any:
    import segmentation_models_pytorch as smp

    return smp.FPN("resnet18", encoder_weights=None, **arguments)


@pytest.mark.parametrize("inner", [lambda model: model, lambda model: _module("torch.nn.DataParallel", model)])
def test_a_normalisation_before_the_model_is_that_of_its_images(
    tmp_path: Path, inner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from torchvision.transforms import Normalize

    normalise = Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    whole = torch.nn.Sequential(torch.nn.Identity(), normalise, inner(_model(classes=3)), torch.nn.Softmax(1))
    path = _save(whole, tmp_path / "whole.pt")
    spec = model_spec(path)
    assert (spec.mean, spec.std, spec.multilabel) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), False)
    assert any("mean 0.4,0.5,0.6" in message for message in caplog.messages)
    assert any("the Softmax after the model is left out" in message for message in caplog.messages)
    assert model_spec(path, {"normalize": "imagenet"}).mean == (0.485, 0.456, 0.406)


def test_a_normalisation_with_tensors_of_another_library_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    module = types.ModuleType("kornia.enhance.normalize")
    kind = type("Normalize", (torch.nn.Module,), {"__module__": module.__name__})
    module.Normalize = kind  # type: ignore[attr-defined]
    for name in ("kornia", "kornia.enhance"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    normalise = kind()
    normalise.mean = torch.tensor([[0.4, 0.5, 0.6]])
    normalise.register_buffer("std", torch.tensor([0.1, 0.2, 0.3]))
    spec = model_spec(_save(torch.nn.Sequential(normalise, _model()), tmp_path / "whole.pt"))
    assert (spec.mean, spec.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def test_a_sigmoid_after_a_whole_module_makes_its_classes_overlap(tmp_path: Path) -> None:
    import torch
    from segmentation_models_pytorch.base.modules import Activation

    for classes, overlap in ((1, False), (2, True)):
        for end in (torch.nn.Sigmoid(), Activation("sigmoid")):
            whole = torch.nn.Sequential(_model(classes=classes), end)
            assert model_spec(_save(whole, tmp_path / "whole.pt")).multilabel == overlap


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (["Conv2d"], [], "Conv2d (0) before the model"),
        (["Normalize", "Normalize"], [], "Normalize (1) before the model"),
        (["Sigmoid"], [], "Sigmoid (0) before the model"),
        ([], ["Upsample"], "Upsample (1) after the model"),
        ([], ["Normalize"], "Normalize (1) after the model"),
    ],
)
def test_what_a_sequential_computes_beside_the_model_is_refused(
    tmp_path: Path, before: list[str], after: list[str], told: str
) -> None:
    import torch
    from torchvision.transforms import Normalize

    made = {
        "Conv2d": lambda: torch.nn.Conv2d(3, 3, 1),
        "Normalize": lambda: Normalize([0.5], [0.5]),
        "Sigmoid": torch.nn.Sigmoid,
        "Upsample": lambda: torch.nn.Upsample(scale_factor=2),
    }
    parts = [*(made[name]() for name in before), _model(), *(made[name]() for name in after)]
    path = _save(torch.nn.Sequential(*parts), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError) as caught:
        model_spec(path)
    assert told in caught.value.message
    assert "torch.onnx.export" in caught.value.hint


def test_what_another_wrapper_computes_is_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    whole: Any = torch.nn.Module()
    whole.net = _model()
    assert model_spec(_save(whole, tmp_path / "whole.pt")).arch == "FPN"
    assert "whole.pt: what Module, which holds the model, computes itself is left out" in caplog.messages


def test_a_whole_module_that_is_none_of_the_library_is_no_spec(tmp_path: Path) -> None:
    import torch

    path = _save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    assert described(path).spec is None
    assert read_state_dict(path).keys() == {"weight", "bias"}


def test_no_class_that_a_file_names_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    path = _save({"model": torch.nn.Sequential(torch.nn.Linear(2, 2))}, tmp_path / "whole.pt")
    for kind in (torch.nn.Module, torch.nn.Linear, torch.nn.Sequential):
        monkeypatch.setattr(kind, "__setstate__", lambda *_: pytest.fail("code of the file's classes ran"))
    assert read_state_dict(path).keys() == {"0.weight", "0.bias"}


def test_code_deep_within_a_module_is_named_and_not_run(tmp_path: Path) -> None:
    import torch

    trace = tmp_path / "trace"
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module[0].hook = {"inner": [_evil("system", trace)]}
    assert ".system" in _refused(_save({"model": module}, tmp_path / "evil.pt"), trace).message


@pytest.mark.parametrize(
    "name",
    ["builtins.getattr", "builtins.__import__", "torch.load", "torch.hub.load", "importlib.import_module", "a.b.Model"],
)
def test_other_classes_and_functions_are_refused_by_name(tmp_path: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    path = tmp_path / "evil.pth"
    path.write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    assert name in _refused(path, tmp_path / "trace").message


def test_quantised_tensors_are_no_code_but_are_not_read(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "small.pth"
    torch.save({"encoder.weight": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}, path)
    error = _refused(path, tmp_path / "trace")
    assert "holds quantised tensors" in error.message
    assert "--precision int8" in error.hint


def test_code_in_a_nested_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    inner = pickle.dumps({"x": _evil("system", trace)})
    load = b"ctorch.storage\n_load_from_bytes\n" + pickle.dumps(inner, 3)[2:-1] + b"\x85R."
    (tmp_path / "evil.pth").write_bytes(b"\x80\x03" + load)
    assert ".system" in _refused(tmp_path / "evil.pth", trace).message


def test_an_unknown_persistent_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.pth").write_bytes(b"\x80\x02X\x04\x00\x00\x00evilQ.")
    assert "persistent id evil" in _refused(tmp_path / "odd.pth", tmp_path / "trace").message


def test_state_set_on_what_the_reader_offers_changes_nothing(tmp_path: Path, state: State) -> None:
    for function in (
        b"torch._utils\n_rebuild_tensor_v2",
        b"collections\nOrderedDict",
        b"torch.nn.modules.linear\nLinear",
    ):
        (tmp_path / "odd.pth").write_bytes(b"\x80\x02c" + function + b"\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.")
        with contextlib.suppress(CheckpointError):
            read_state_dict(tmp_path / "odd.pth")
    _assert_same(read_state_dict(_save(state, tmp_path / "a.pt")), state)


def test_a_torchscript_file_is_refused_with_advice(tmp_path: Path) -> None:
    import torch

    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    error = _refused(tmp_path / "script.pt", tmp_path / "trace")
    assert "TorchScript" in error.message
    assert "state_dict()" in error.hint
    assert "--model FILE.onnx" in error.hint


# What is not a checkpoint


@pytest.mark.parametrize("read", [read_state_dict, weights_file, checkpoint_digest, described])
@pytest.mark.parametrize("name", ["gone.pt", "gone/gone.safetensors", "bare", "empty.pt", "empty.safetensors"])
def test_missing_and_empty_checkpoints_are_refused_by_name(
    tmp_path: Path, read: Callable[[Path], Any], name: str
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(CheckpointError, match=name) as caught:
        read(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize("read", [read_state_dict, weights_file, checkpoint_digest, described])
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_unreadable_checkpoints_are_refused_by_name(
    locked_folder: Path, unprivileged: Block, read: Callable[[Path], Any], locked: str
) -> None:
    if read is weights_file and locked == "file":
        pytest.skip("weights_file does not read the file")
    path = locked_folder / "a.safetensors"
    path.write_bytes(b"x" * 100)
    (path if locked == "file" else locked_folder).chmod(0o000)
    with unprivileged(), pytest.raises(CheckpointError, match=r"a\.safetensors"):
        read(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pt.tar", ".weights", ".model", "", ".safetensors.bak"])
def test_a_checkpoint_of_any_name_is_read_by_its_content(tmp_path: Path, state: State, suffix: str) -> None:
    from safetensors.torch import save_file

    for number, write in enumerate((_save, save_file)):
        write(state, tmp_path / f"a{number}{suffix}")  # type: ignore[operator]
        assert read_state_dict(tmp_path / f"a{number}{suffix}").keys() == state.keys()


MISTAKES: dict[str, tuple[bytes, str]] = {
    "a.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
    "a.pt": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "a.safetensors": (b"<html></html>", "web page"),
    "a.onnx": (b"\x08\x08", "an ONNX model"),
    "a.ONNX": (b"\x08\x08", "an ONNX model"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "a.pth.gz": (gzip.compress(b"x"), "gzip"),
    "photo.pt": (b"\x89PNG\r\n\x1a\n", "an image"),
    "a.engine": (b"ftrt\0\0\0\0", "a TensorRT plan"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    content, told = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_state_dict(tmp_path / name)
    assert caught.value.hint


def test_archives_are_called_what_they_are(tmp_path: Path, state: State) -> None:
    inside = _save(state, tmp_path / "a.pt")
    with tarfile.open(tmp_path / "b.pth.tar", "w") as tar:
        tar.add(inside, "a.pt")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(inside, "a.pt")
    for name, told in (("b.pth.tar", "a tar archive"), ("c.zip", "holds a.pt")):
        with pytest.raises(CheckpointError, match=told) as caught:
            read_state_dict(tmp_path / name)
        assert "unpack it" in caught.value.hint


def test_an_exported_program_is_refused_with_advice(tmp_path: Path) -> None:
    import torch

    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), str(tmp_path / "a.pt2"))
    error = _refused(tmp_path / "a.pt2", tmp_path / "trace")
    assert "exported program" in error.message
    assert "state_dict()" in error.hint
    assert "--model FILE.onnx" in error.hint


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.txt"])
def test_unknown_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match="unknown kind") as caught:
        read_state_dict(tmp_path / name)
    assert ".safetensors" in caught.value.hint


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".safetensors", ".SafeTensors"])
@pytest.mark.parametrize("content", [b"just some text\n" * 30, b"\x00" * 300, b"\xff" * 300, b"PK\x03\x04", b"{}"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"junk\{suffix}") as caught:
        read_state_dict(path)
    assert "unknown kind" not in caught.value.message


def test_a_foreign_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "foreign.pt", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(CheckpointError, match=r"foreign\.pt"):
        read_state_dict(tmp_path / "foreign.pt")


def _three_kinds(state: State, folder: Path) -> list[Path]:
    from safetensors.torch import save_file

    save_file(state, folder / "a.safetensors", metadata={METADATA_KEY: ModelSpec().to_json()})
    return [folder / "a.safetensors", _save(state, folder / "a.pth"), _save(state, folder / "b.pth", as_zip=False)]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["safetensors", "zip", "legacy"])
def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path: Path, state: State, kind: int) -> None:
    path = _three_kinds(state, tmp_path)[kind]
    whole = path.read_bytes()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            read_state_dict(path)


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["safetensors", "zip", "legacy"])
def test_a_damaged_byte_brings_no_other_error(tmp_path: Path, state: State, kind: int) -> None:
    path = _three_kinds(state, tmp_path)[kind]
    whole = path.read_bytes()
    for at in range(0, min(len(whole), 1500), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        for read in (read_state_dict, described):
            with contextlib.suppress(SegxError):
                read(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [([1, 2], "a list"), ({}, "no weights"), ({"epoch": 3}, "epoch"), ({"state_dict": {}}, "no weights"), (5, "a int")],
)
def test_files_without_weights_say_what_they_hold(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        read_state_dict(_save(content, tmp_path / "a.pt"))
    assert "state_dict()" in caught.value.hint


def test_a_single_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    import torch

    with pytest.raises(CheckpointError, match="Tensor"):
        read_state_dict(_save(torch.ones(3), tmp_path / "a.pt"))


# What a checkpoint says of itself


def test_own_files_say_what_model_they_are(tiny_checkpoint: Path, tiny_spec: ModelSpec) -> None:
    assert described(tiny_checkpoint).spec == tiny_spec


def test_other_files_say_nothing(tmp_path: Path, state: State) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors", metadata={"format": "pt"})
    _save(state, tmp_path / "c.pt")
    assert [described(path).spec for path in sorted(tmp_path.iterdir())] == [None, None, None]


@pytest.mark.parametrize("text", ["{", "[]", '{"bogus": 1}', '{"in_channels": 0}'])
def test_a_file_that_says_nonsense_is_refused_by_name(tmp_path: Path, state: State, text: str) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "odd.safetensors", metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        described(tmp_path / "odd.safetensors")


CONFIG = {
    "_model_class": "FPN",
    "encoder_name": "resnet18",
    "encoder_depth": 4,
    "encoder_weights": "imagenet",
    "in_channels": 3,
    "classes": 5,
    "activation": "softmax",
    "aux_params": None,
    "upsampling": 4,
}


def _folder(tmp_path: Path, config: str | None, state: State | None = None) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file(state or {"encoder.conv1.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    return tmp_path


def test_a_pretrained_folder_says_what_model_it_is(tmp_path: Path) -> None:
    assert described(_folder(tmp_path, json.dumps(CONFIG))).spec == ModelSpec(
        arch="FPN",
        encoder_name="resnet18",
        in_channels=3,
        classes=5,
        arguments={"encoder_depth": 4, "upsampling": 4},
    )


def test_a_sigmoid_over_several_classes_makes_them_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _folder(tmp_path, json.dumps(CONFIG | {"activation": "sigmoid"}))
    assert model_spec(folder).multilabel
    assert "its 5 classes may overlap: a mask for each" in caplog.text
    assert not model_spec(folder, {"multilabel": False}).multilabel


def test_a_pretrained_config_without_channels_means_rgb(tmp_path: Path) -> None:
    spec = described(_folder(tmp_path, '{"_model_class": "Unet"}')).spec
    assert spec is not None
    assert spec.in_channels == 3


def test_an_auxiliary_head_of_a_pretrained_folder_is_left_out(tmp_path: Path, state: State) -> None:
    import torch

    state |= {"classification_head.3.weight": torch.ones(2)}
    folder = _folder(tmp_path, json.dumps(CONFIG | {"aux_params": {"classes": 2}}), state)
    assert "classification_head.3.weight" not in read_state_dict(folder)
    assert "aux_params" not in model_spec(folder).arguments


# Mean and std in a checkpoint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _buffers(prefix: str, mean: Any = MEAN, std: Any = STD) -> Any:
    import torch

    return {f"{prefix}mean": torch.tensor(mean).view(1, -1, 1, 1), f"{prefix}std": torch.tensor(std).view(1, -1, 1, 1)}


STORED: dict[str, Callable[[State], Any]] = {
    "buffers of Lightning": lambda state: {"state_dict": _buffers("") | _prefixed("model.", state)},
    "buffers of the model": lambda state: {"state_dict": _prefixed("model.", state) | _buffers("model.")},
    "buffers beside bare names": lambda state: state | _buffers(""),
    "a layer that normalises": lambda state: _prefixed("1.", state) | _buffers("normalize."),
    "named after pixels": lambda state: state | _buffers("pixel_"),
    "hyper parameters": lambda state: {"state_dict": state, "hyper_parameters": {"mean": list(MEAN), "std": STD}},
    "a namespace": lambda state: {"model": state, "args": argparse.Namespace(image_mean=MEAN, image_std=list(STD))},
    "preprocessing of smp": lambda state: {
        "model": state,
        "preprocess_params": {"input_space": "RGB", "input_range": [0, 1], "mean": [*MEAN], "std": [*STD]},
    },
    "deep in a config": lambda state: {"model": state, "config": {"data": {"mean": MEAN, "std": STD}}},
    "NumPy arrays": lambda state: {"model": state, "hparams": {"mean": np.array(MEAN), "std": np.array(STD)}},
    "NumPy numbers": lambda state: {
        "model": state,
        "cfg": {"mean": [np.float64(n) for n in MEAN], "std": [np.float64(n) for n in STD]},
    },
    "OmegaConf": lambda state: {
        "model": state,
        "hyper_parameters": _omegaconf(mean=_omegaconf(MEAN), std=_omegaconf(STD)),
    },
    "transforms of Albumentations": lambda state: {
        "model": state,
        "transform": {"transforms": [{"p": 0.5}, {"mean": list(MEAN), "std": list(STD), "max_pixel_value": 255.0}]},
    },
    "twice the same": lambda state: {
        "state_dict": state | _buffers(""),
        "hyper_parameters": {"mean": MEAN, "std": STD},
    },
}


class _DictConfig:
    pass


def _omegaconf(values: Any = None, **named: Any) -> Any:
    """Lay out values as OmegaConf does, which need not be installed."""

    def node(value: Any) -> Any:
        made = _DictConfig()
        made.__dict__ = {"_metadata": None, "_val": value}
        return made

    made = _DictConfig()
    made.__dict__ = {"_metadata": None, "_content": named or [node(value) for value in values]}
    return made


_DictConfig.__module__, _DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"


@pytest.fixture(autouse=True)
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pickle find the class under its name."""
    module = types.ModuleType("omegaconf.dictconfig")
    monkeypatch.setattr(module, "DictConfig", _DictConfig, raising=False)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)


@pytest.mark.parametrize("kind", STORED)
def test_stored_mean_and_std_are_used_and_said(
    tmp_path: Path, state: State, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save(STORED[kind](state), tmp_path / "a.ckpt")
    spec = model_spec(path, {"in_channels": 3})
    assert (spec.mean, spec.std) == (MEAN, STD)
    assert any("mean 0.485,0.456,0.406 and std 0.229,0.224,0.225" in message for message in caplog.messages)
    assert read_state_dict(path).keys() == state.keys()


def test_the_mean_and_std_that_the_user_gives_win(tmp_path: Path, state: State) -> None:
    path = _save(state | _buffers(""), tmp_path / "a.ckpt")
    assert model_spec(path, {"in_channels": 3, "mean": (0.5,) * 3}).mean == (0.5,) * 3
    assert model_spec(path, {"in_channels": 3, "mean": (), "std": ()}).std == ()
    assert model_spec(path, {"in_channels": 3, "normalize": "none"}).std == ()


def test_one_mean_is_that_of_every_channel(tmp_path: Path, state: State) -> None:
    path = _save(state | _buffers("", [0.5], [0.25]), tmp_path / "a.ckpt")
    assert model_spec(path).mean == (0.5,)
    assert model_spec(path, {"in_channels": 3}).std == (0.25,) * 3


def test_a_mean_of_other_channels_is_said_and_not_used(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    assert model_spec(_save(state | _buffers(""), tmp_path / "b.ckpt")).mean == ()
    assert "not used: the model has 1 channels" in caplog.text


@pytest.mark.parametrize(("mean", "std"), [([-700.0], [300.0]), ([12000.0], [4000.0]), ([-0.5], [1.0])])
def test_a_mean_that_is_not_of_images_is_said_and_not_used(
    tmp_path: Path, state: State, mean: list[float], std: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert model_spec(_save(state | _buffers("", mean, std), tmp_path / "a.ckpt")).mean == ()
    assert "not used: they are not those of images" in caplog.text


def test_a_module_that_holds_itself_is_read(tmp_path: Path) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module._modules["again"] = module._modules["more"] = module
    assert read_state_dict(_save(module, tmp_path / "a.pt")).keys() == {"0.weight", "0.bias"}
    assert described(tmp_path / "a.pt").spec is None


def test_a_mean_of_images_to_255_is_used_with_that_range_only(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save(state | _buffers("", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), tmp_path / "a.ckpt")
    assert model_spec(path, {"in_channels": 3}).mean == ()
    assert "--input-range 0-255 --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375" in caplog.text
    assert model_spec(path, {"in_channels": 3, "input_range": "0-255"}).mean == (123.675, 116.28, 103.53)


def test_stored_mean_and_std_of_safetensors_and_folders_are_used(tmp_path: Path, state: State) -> None:
    from safetensors.torch import save_file

    save_file(state | _buffers(""), tmp_path / "a.safetensors")
    assert model_spec(tmp_path / "a.safetensors", {"in_channels": 3}).mean == MEAN
    (tmp_path / "folder").mkdir()
    told = {"mean": MEAN, "std": STD}
    folder = _folder(tmp_path / "folder", json.dumps(CONFIG | {"preprocess_params": told}), state)
    spec = model_spec(folder)
    assert spec.std == STD
    assert "preprocess_params" not in spec.arguments


def test_the_order_of_colours_is_taken_from_stored_preprocessing(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"input_space": "BGR", "input_range": [0, 1], "mean": MEAN, "std": STD}
    folder = _folder(tmp_path, json.dumps(CONFIG | {"preprocess_params": told}), state)
    assert (model_spec(folder).channel_order, model_spec(folder).mean) == ("bgr", MEAN)
    assert "colours are in the order BGR, as it says" in caplog.text
    assert model_spec(folder, {"channel_order": "rgb"}).channel_order == "rgb"


def test_a_file_is_opened_again_only_if_it_changed(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    read = checkpoint.read_pickle
    monkeypatch.setattr(checkpoint, "read_pickle", lambda stream, file: opened.append(file) or read(stream, file))
    path = _save(state, tmp_path / "a.ckpt")
    assert model_spec(path, {"in_channels": 3}).mean == ()
    assert described(path).spec is None
    assert described(path).normalisation is None
    assert opened == [path.absolute()]
    _save(state | _buffers(""), path)
    assert described(path).normalisation is not None
    assert len(opened) == 2


def test_several_means_are_said_and_not_used(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    config = {"a": {"mean": MEAN, "std": STD}, "b": {"mean": STD, "std": MEAN}}
    path = _save({"state_dict": state, "config": config}, tmp_path / "a.ckpt")
    assert model_spec(path, {"in_channels": 3}).mean == ()
    assert "pass --mean and --std" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "val_iou": {"mean": 0.8, "std": 0.1}},
        lambda state: _prefixed("model.", state) | _buffers("loss.", [0.5], [0.25]),
        lambda state: {"model": state, "hyper_parameters": {"mean": "imagenet", "std": None}},
    ],
    ids=["scores", "loss", "text"],
)
def test_other_means_are_not_taken_for_that_of_images(
    tmp_path: Path, state: State, wrap: Callable[[State], Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert model_spec(_save(wrap(state), tmp_path / "a.ckpt")).mean == ()
    assert "normalised" not in caplog.text


def test_the_spec_is_read_without_torch(tmp_path: Path, state: State) -> None:
    path = _save({"state_dict": state | _buffers("")}, tmp_path / "a.ckpt")
    code = (
        "import sys; from pathlib import Path; from segx.model.checkpoint import model_spec; "
        f"assert model_spec(Path({str(path)!r}), {{'in_channels': 3}}).mean; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("config", [None, "", "{", "[]", "{}", "3", '{"_model_class": "Unet", "in_channels": 0}'])
def test_a_folder_without_a_usable_config_is_refused(tmp_path: Path, config: str | None) -> None:
    with pytest.raises(SegxError) as caught:
        described(_folder(tmp_path, config))
    assert caught.value.hint


# Damaged files


def _checkpoints(folder: Path, state: State) -> dict[str, bytes]:
    """Return files of every form, by name: with settings, a whole module, compressed, and a folder's config."""
    import torch

    module = torch.nn.Sequential(collections.OrderedDict(encoder=torch.nn.Linear(2, 2), decoder=torch.nn.ReLU()))
    wrapped = {"state_dict": state, "ema": state, "hyper_parameters": {"image_mean": (0.4,), "image_std": [0.2]}}
    files = {path.name: path.read_bytes() for path in _three_kinds(state, folder)}
    for name, content, as_zip in (("m.pt", module, True), ("w.ckpt", wrapped, True), ("w.pth", wrapped, False)):
        files[name] = _save(content, folder / name, as_zip=as_zip).read_bytes()
    with zipfile.ZipFile(folder / "a.pth") as archive, zipfile.ZipFile(folder / "z.pt", "w", zipfile.ZIP_DEFLATED) as z:
        for name in archive.namelist():
            z.writestr(name, archive.read(name))
    config = {"_model_class": "Unet", "encoder_name": "resnet18", "in_channels": 1, "classes": 1, "mean": [0.4]}
    return files | {"z.pt": (folder / "z.pt").read_bytes(), "config.json": json.dumps(config).encode()}


def _with_damaged_pickle(archive: bytes, count: int) -> Iterator[bytes]:
    """Yield variants of a zip archive that is whole by its checksums."""
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        content = {name: whole.read(name) for name in whole.namelist()}
    name = next(name for name in content if name.endswith("data.pkl"))
    for variant in damaged(content[name], count):
        with zipfile.ZipFile(stream := io.BytesIO(), "w") as made:
            for each, data in {**content, name: variant}.items():
                made.writestr(each, data)
        yield stream.getvalue()


@few_or_many
def test_damaged_checkpoints_are_checkpoint_errors(tmp_path: Path, state: State, count: int) -> None:
    from safetensors.torch import save_file

    def read_as(path: Path) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            path.write_bytes(data)
            where = path.parent if path.name == "config.json" else path
            model_spec(where)
            if path.name != "config.json":
                read_state_dict(where)

        return read

    (tmp_path / "made").mkdir()
    save_file(state, tmp_path / "model.safetensors")
    for name, data in _checkpoints(tmp_path / "made", state).items():
        read = read_as(tmp_path / name)
        read_all(damaged_json(data, count) if name == "config.json" else damaged(data, count), read)
        if zipfile.is_zipfile(io.BytesIO(data)):
            read_all(_with_damaged_pickle(data, count), read)


def test_a_table_as_large_as_the_file_says_is_not_allocated(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80\x02}r" + (2**31 - 5).to_bytes(4, "little") + b".")  # LONG_BINPUT
    read_all(iter([b""]), lambda _: described(tmp_path / "a.pt").spec)


def test_an_entry_larger_than_the_file_is_not_unpacked(tmp_path: Path, state: State) -> None:
    with zipfile.ZipFile(_save(state, tmp_path / "a.pt")) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in content.items():
            bomb.writestr(name, bytes(2**24) if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match=r"b\.pt .*data/0 in it is larger than the whole file"):
        read_state_dict(tmp_path / "b.pt")


@pytest.mark.parametrize("as_module", [False, True])
def test_parts_that_hold_each_other_many_times_are_counted(
    tmp_path: Path, state: State, as_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(checkpoint, "_MOST_VISITS", 10_000)
    content: Any = torch.nn.Linear(2, 2) if as_module else dict(state)
    for _ in range(6):
        inner = content
        if as_module:
            content = torch.nn.Module()
            content._modules.update({str(i): inner for i in range(100)})
        else:
            content = {f"{i}": inner for i in range(100)}
    with pytest.raises(CheckpointError, match="parts"):
        described(_save(content, tmp_path / "a.pt"))


@pytest.mark.parametrize("as_module", [False, True])
def test_what_a_training_recorded_may_be_long(
    tmp_path: Path, state: State, as_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(checkpoint, "_MOST_VISITS", 10_000)
    log = [{"step": step, "loss": step / 7} for step in range(20_000)]
    content: Any = {"state_dict": dict(state), "losses": [step / 7 for step in range(20_000)], "log": log}
    if as_module:
        content = torch.nn.Linear(2, 2)
        content.losses = log
    assert read_state_dict(_save(content, tmp_path / "a.pt"))


def test_a_file_of_zeros_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read as a checkpoint: it is damaged"):
        described(tmp_path / "a.pt")
