from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from segx.errors import CheckpointError, SegxError
from segx.model.checkpoint import checkpoint_digest, read_state_dict, spec_in_checkpoint, weights_file
from segx.model.spec import METADATA_KEY, ModelSpec

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


def test_unknown_prefixes_stay(tmp_path: Path, state: State) -> None:
    foreign = {f"backbone.{name}": tensor for name, tensor in state.items()}
    _assert_same(read_state_dict(_save(foreign, tmp_path / "a.pt")), foreign)


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


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickled_module_is_refused_with_advice(tmp_path: Path, as_zip: bool) -> None:
    import torch

    error = _refused(_save(torch.nn.Linear(2, 2), tmp_path / "whole.pt", as_zip=as_zip), tmp_path / "trace")
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "state_dict()" in error.hint


def test_a_torchscript_file_is_refused_with_advice(tmp_path: Path) -> None:
    import torch

    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    error = _refused(tmp_path / "script.pt", tmp_path / "trace")
    assert "TorchScript" in error.message
    assert "state_dict()" in error.hint


# What is no checkpoint


@pytest.mark.parametrize("read", [read_state_dict, weights_file, checkpoint_digest, spec_in_checkpoint])
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


@pytest.mark.parametrize("read", [read_state_dict, weights_file, checkpoint_digest, spec_in_checkpoint])
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


@pytest.mark.parametrize("name", ["a.onnx", "a.h5", "a", "a.txt"])
def test_unknown_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match="unknown kind") as caught:
        read_state_dict(tmp_path / name)
    assert ".safetensors" in caught.value.hint


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"just some text\n" * 30, b"\x00" * 300, b"\xff" * 300, b"PK\x03\x04", b"{}"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"junk\{suffix}"):
        read_state_dict(path)


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
        for read in (read_state_dict, spec_in_checkpoint):
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
    assert spec_in_checkpoint(tiny_checkpoint) == tiny_spec


def test_other_files_say_nothing(tmp_path: Path, state: State) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors", metadata={"format": "pt"})
    _save(state, tmp_path / "c.pt")
    assert [spec_in_checkpoint(path) for path in sorted(tmp_path.iterdir())] == [None, None, None]


@pytest.mark.parametrize("text", ["{", "[]", '{"bogus": 1}', '{"in_channels": 2}'])
def test_a_file_that_says_nonsense_is_refused_by_name(tmp_path: Path, state: State, text: str) -> None:
    from safetensors.torch import save_file

    save_file(state, tmp_path / "odd.safetensors", metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        spec_in_checkpoint(tmp_path / "odd.safetensors")


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


def _folder(tmp_path: Path, config: str | None) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    return tmp_path


def test_a_pretrained_folder_says_what_model_it_is(tmp_path: Path) -> None:
    assert spec_in_checkpoint(_folder(tmp_path, json.dumps(CONFIG))) == ModelSpec(
        arch="FPN",
        encoder_name="resnet18",
        in_channels=3,
        classes=5,
        arguments={"encoder_depth": 4, "upsampling": 4},
    )


def test_a_pretrained_config_without_channels_means_rgb(tmp_path: Path) -> None:
    spec = spec_in_checkpoint(_folder(tmp_path, '{"_model_class": "Unet"}'))
    assert spec is not None
    assert spec.in_channels == 3


@pytest.mark.parametrize("config", [None, "", "{", "[]", "{}", "3", '{"_model_class": "Unet", "in_channels": 4}'])
def test_a_folder_without_a_usable_config_is_refused(tmp_path: Path, config: str | None) -> None:
    with pytest.raises(SegxError) as caught:
        spec_in_checkpoint(_folder(tmp_path, config))
    assert caught.value.hint
