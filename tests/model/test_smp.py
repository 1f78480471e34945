from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from segx.cli.options import model_options, spec_overrides
from segx.errors import CheckpointError, UsageError
from segx.model.checkpoint import described, model_spec
from segx.model.smp import build_module, load_model
from segx.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch

Weights = Callable[["torch.nn.Module"], Path]
PARAMETERS_OF_RESNET34_LAYER4 = 13_114_368


@pytest.fixture(autouse=True)
def _few_encoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search for a file's encoder among those of this module: building all of the library's takes half a minute."""
    import segmentation_models_pytorch as smp

    if request.node.get_closest_marker("slow"):
        return
    tests = Path(__file__).read_text()
    few = [name for name in smp.encoders.get_encoder_names() if name in tests]
    monkeypatch.setattr(smp.encoders, "get_encoder_names", lambda: few)


def _plain(spec: ModelSpec) -> torch.nn.Module:
    """The library's own model, as its user would build and train it."""
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    module: torch.nn.Module = getattr(smp, spec.arch)(
        encoder_name=spec.encoder_name,
        encoder_weights=None,
        in_channels=spec.in_channels,
        classes=spec.classes,
        **spec.arguments,
    )
    # Fresh statistics are 0 and 1, which would hide that they were not loaded.
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return module.eval()


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _logits(module: torch.nn.Module, spec: ModelSpec) -> torch.Tensor:
    import torch

    images = torch.rand(2, *spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: torch.Tensor = module(images)
    assert logits.shape == (2, *spec.output_shape)
    return logits


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """A file with the weights of a model."""

    def write(module: torch.nn.Module) -> Path:
        import torch

        torch.save(module.state_dict(), tmp_path / "w.pth")
        return tmp_path / "w.pth"

    return write


def _spec(arch: str, encoder: str, size: int = 64, **arguments: Any) -> ModelSpec:
    return ModelSpec(
        arch=arch, encoder_name=encoder, in_channels=3, classes=3, height=size, width=size, arguments=arguments
    )


SHALLOW = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}

DEEP = {"decoder_channels": [32, 16, 8, 8, 8]}

MODELS = [
    _spec("Unet", "resnet18", **DEEP),
    _spec("FPN", "resnet18"),
    _spec("Linknet", "resnet18"),
    _spec("DeepLabV3Plus", "resnet18"),
    _spec("PSPNet", "resnet18"),
    _spec("UnetPlusPlus", "resnet18", encoder_depth=3, decoder_channels=[16, 16, 16], decoder_attention_type="scse"),
    _spec("Unet", "mit_b0", **DEEP),
    _spec("Unet", "mit_b0", encoder_depth=4, decoder_channels=[16, 8, 8, 8]),
    _spec("Unet", "efficientnet-b0", **DEEP),
    _spec("Unet", "efficientnet-b0", **SHALLOW),
    _spec("Unet", "timm-efficientnet-b0", **SHALLOW),
    _spec("Unet", "mobilenet_v2", **SHALLOW),
    _spec("Unet", "densenet121", **SHALLOW),
    _spec("Unet", "tu-hrnet_w18_small", **SHALLOW),
    _spec("Unet", "timm-regnetx_002", **SHALLOW),
]


@pytest.mark.filterwarnings("ignore:.*timm-:DeprecationWarning")
@pytest.mark.parametrize("spec", MODELS, ids=str)
def test_output_is_that_of_the_plain_model(spec: ModelSpec, weights: Weights) -> None:
    plain = _plain(spec)
    module = load_model(weights(plain), spec)
    assert _logits(module, spec).equal(_logits(plain, spec))
    assert not module.training


def test_loading_draws_no_random_numbers(weights: Weights) -> None:
    """Drawing them takes as long as all other steps of building the model."""
    import torch

    path = weights(_plain(TINY))
    before = torch.get_rng_state()
    load_model(path, TINY)
    assert torch.get_rng_state().equal(before)


def test_output_is_that_of_the_plain_default_model(weights: Weights) -> None:
    spec = ModelSpec(height=64, width=64)
    plain = _plain(spec)
    module = load_model(weights(plain), spec)
    assert _logits(module, spec).equal(_logits(plain, spec))
    assert _size(plain) - _size(module) == PARAMETERS_OF_RESNET34_LAYER4


# Parts that never run


def test_the_stage_that_the_default_model_does_not_use_is_dropped() -> None:
    import torch

    module: Any = build_module(ModelSpec())
    assert isinstance(module.encoder.layer4, torch.nn.Identity)
    assert not isinstance(module.encoder.layer3, torch.nn.Identity)
    assert not any(name.startswith("encoder.layer4.") for name in module.state_dict())


def test_unused_stages_may_be_absent_from_the_file(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    plain = _plain(tiny_spec)
    unused = ("encoder.layer3.", "encoder.layer4.")
    lean = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith(unused)}
    assert len(lean) < len(plain.state_dict())
    torch.save(lean, tmp_path / "lean.pt")
    assert _logits(load_model(tmp_path / "lean.pt", tiny_spec), tiny_spec).equal(_logits(plain, tiny_spec))


def test_a_deep_model_keeps_every_stage() -> None:
    spec = _spec("Unet", "resnet18")
    assert _size(build_module(spec)) == _size(_plain(spec))


# How weights are stored


def test_half_precision_is_loaded_as_float32(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    plain = _plain(tiny_spec)
    torch.save(plain.half().state_dict(), tmp_path / "half.pt")
    module = load_model(tmp_path / "half.pt", tiny_spec)
    assert {tensor.dtype for tensor in [*module.parameters(), *module.buffers()]} <= {torch.float32, torch.int64}
    assert _logits(module, tiny_spec).equal(_logits(plain.float(), tiny_spec))


def test_a_file_without_batch_counters_is_loaded(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    plain = _plain(tiny_spec)
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    assert _logits(load_model(tmp_path / "w.pt", tiny_spec), tiny_spec).equal(_logits(plain, tiny_spec))


def test_a_lightning_checkpoint_of_a_compiled_model_is_loaded(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    plain = _plain(tiny_spec)
    state = {f"model._orig_mod.{name}": tensor for name, tensor in plain.state_dict().items()}
    state |= {"mean": torch.ones(1), "loss.weight": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 1, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    assert _logits(load_model(tmp_path / "last.ckpt", tiny_spec), tiny_spec).equal(_logits(plain, tiny_spec))


def test_the_path_may_be_text(tiny_checkpoint: Path, tiny_spec: ModelSpec) -> None:
    one, other = (load_model(path, tiny_spec) for path in (tiny_checkpoint, str(tiny_checkpoint)))
    assert _logits(one, tiny_spec).equal(_logits(other, tiny_spec))


@pytest.mark.parametrize("spec", [_spec("FPN", "resnet18"), _spec("UnetPlusPlus", "resnet18", **SHALLOW)], ids=str)
def test_a_pretrained_folder_round_trip(tmp_path: Path, spec: ModelSpec) -> None:
    plain: Any = _plain(spec)
    plain.save_pretrained(tmp_path / "saved")
    told = described(tmp_path / "saved").spec
    assert told is not None
    assert (told.arch, told.encoder_name, told.in_channels, told.classes) == (spec.arch, "resnet18", 3, 3)
    told = replace(told, height=64, width=64)
    assert ModelSpec.from_json(told.to_json()) == told
    assert _logits(load_model(tmp_path / "saved", told), told).equal(_logits(plain, spec))


def test_a_folder_without_a_config_is_loaded_with_a_spec(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    plain = _plain(tiny_spec)
    torch.save(plain.state_dict(), tmp_path / "pytorch_model.bin")
    assert _logits(load_model(tmp_path, tiny_spec), tiny_spec).equal(_logits(plain, tiny_spec))


def test_averaged_weights_are_chosen_by_the_spec(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    import torch

    trained, averaged = _plain(tiny_spec), _plain(tiny_spec)
    for parameter in averaged.parameters():
        parameter.data += 0.01
    torch.save({"model": trained.state_dict(), "ema": averaged.state_dict()}, tmp_path / "w.pt")
    assert _logits(load_model(tmp_path / "w.pt", tiny_spec), tiny_spec).equal(_logits(trained, tiny_spec))
    spec = replace(tiny_spec, checkpoint_key="ema")
    assert _logits(load_model(tmp_path / "w.pt", spec), spec).equal(_logits(averaged, spec))


WHOLE = [
    _spec("Unet", "resnet18", **DEEP),
    _spec("UnetPlusPlus", "densenet121", **SHALLOW),
    _spec("MAnet", "vgg11_bn", **DEEP),
    _spec("FPN", "mobilenet_v2"),
    _spec("Segformer", "mit_b0"),
    _spec("DeepLabV3Plus", "timm-efficientnet-b0"),
    _spec("PAN", "resnet18", 128),
    _spec("UPerNet", "tu-convnext_atto"),
]


@pytest.mark.filterwarnings("ignore:.*timm-:DeprecationWarning")
@pytest.mark.parametrize("whole", WHOLE, ids=str)
def test_a_whole_module_needs_no_arguments(tmp_path: Path, whole: ModelSpec) -> None:
    import torch

    plain = _plain(whole)
    torch.save({"model": plain, "epoch": 3}, tmp_path / "whole.pth")
    spec = model_spec(tmp_path / "whole.pth", {"width": whole.width, "height": whole.height})
    assert _logits(load_model(tmp_path / "whole.pth", spec), spec).equal(_logits(plain, spec))


def _normalise(mean: float, std: float) -> Any:
    from torchvision.transforms import Normalize

    return Normalize([mean] * 3, [std] * 3)


def test_a_normalisation_before_a_whole_module_is_that_of_its_images(tmp_path: Path) -> None:
    import torch

    spec = _spec("Unet", "resnet18", **DEEP)
    plain = _plain(spec)
    whole = torch.nn.Sequential(_normalise(0.4, 0.2), plain, torch.nn.Softmax(1))
    torch.save(whole, tmp_path / "w.pth")
    told = model_spec(tmp_path / "w.pth", {"width": 64, "height": 64})
    assert (told.mean, told.std) == ((0.4,) * 3, (0.2,) * 3)
    assert _logits(load_model(tmp_path / "w.pth", told), told).equal(_logits(plain, spec))


def _slope(model: Any) -> None:
    import torch

    model.decoder.blocks[0].conv1[2] = torch.nn.LeakyReLU(0.2)


def _epsilon(model: Any) -> None:
    import torch

    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-3


def _larger(model: Any) -> None:
    import torch

    model.segmentation_head.append(torch.nn.UpsamplingBilinear2d(scale_factor=2))


def _without(model: Any) -> None:
    del model.decoder.blocks[0].conv1[2]


def _linear(model: Any) -> None:
    import torch

    model.encoder.relu = torch.nn.Identity()


def _dilated(model: Any) -> None:
    model.encoder.layer1[0].conv1.dilation = model.encoder.layer1[0].conv1.padding = (2, 2)


def _nearest(model: Any) -> None:
    model.decoder.blocks[0].interpolation_mode = "bilinear"


def _ends_otherwise(model: Any) -> None:
    import torch

    model.segmentation_head[2] = torch.nn.Softsign()


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (_slope, "decoder.blocks.0.conv1.2 is LeakyReLU, not ReLU"),
    (_epsilon, "encoder.bn1 has eps=0.001, not 1e-05"),
    (_larger, "segmentation_head.3 is UpsamplingBilinear2d, which is not part of it"),
    (_without, "decoder.blocks.0.conv1.2, ReLU, is missing"),
    (_linear, "encoder.relu is Identity, not ReLU"),
    (_dilated, "encoder.layer1.0.conv1 has padding=(2, 2), not (1, 1)"),
    (_nearest, "decoder.blocks.0 has interpolation_mode=bilinear, not nearest"),
    (_ends_otherwise, "segmentation_head.2 is Softsign"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("parallel", [False, True])
def test_a_whole_module_that_computes_something_else_is_refused(
    tmp_path: Path, change: Callable[[Any], None], told: str, parallel: bool
) -> None:
    import torch

    plain = _plain(_spec("Unet", "resnet18", **DEEP))
    change(plain)
    torch.save(torch.nn.DataParallel(plain) if parallel else plain, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "w.pth")
    assert told in caught.value.message
    assert "torch.onnx.export" in caught.value.hint
    assert "--model" in caught.value.hint


def _frozen(model: Any) -> None:
    for part in model.modules():
        part.momentum, part.inplace, part.p = 0.0, True, 0.7


def _synchronised(model: Any) -> None:
    import torch

    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _of_older_library(model: Any) -> None:
    import torch

    model.segmentation_head[1] = torch.nn.UpsamplingBilinear2d(scale_factor=4)
    model.encoder.avgpool = torch.nn.AdaptiveAvgPool2d(1)
    del model.decoder.dropout


def _sigmoid(model: Any) -> None:
    import torch

    model.segmentation_head[2] = torch.nn.Sigmoid()


@pytest.mark.parametrize("alike", [_frozen, _synchronised, _of_older_library, _sigmoid])
def test_a_whole_module_that_computes_the_same_is_accepted(tmp_path: Path, alike: Callable[[Any], None]) -> None:
    import torch

    plain: Any = _plain(_spec("FPN", "resnet18"))
    expected = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    alike(plain)
    torch.save(plain, tmp_path / "w.pth")
    got = load_model(tmp_path / "w.pth").state_dict()
    assert all(got[name].equal(expected[name]) for name in got)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (_spec("Unet", "resnet18", **SHALLOW), {"aux_params": {"classes": 4, "dropout": 0.5}}),
        (_spec("FPN", "resnet18"), {"activation": "softmax2d"}),
        (_spec("FPN", "efficientnet-b0"), {"activation": "sigmoid"}),
    ],
    ids=str,
)
def test_a_whole_module_with_other_ends_is_accepted(tmp_path: Path, spec: ModelSpec, changes: dict[str, Any]) -> None:
    import torch

    whole = _plain(replace(spec, arguments={**spec.arguments, **changes}))
    torch.save(torch.optim.swa_utils.AveragedModel(whole), tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth", model_spec(tmp_path / "w.pth", {"width": 64, "height": 64}))


def test_a_module_without_its_unused_stages_is_accepted(tmp_path: Path) -> None:
    import torch

    spec = _spec("Unet", "resnet18", **SHALLOW)
    plain = _plain(spec)
    torch.save(plain, tmp_path / "w.pth")
    torch.save(load_model(tmp_path / "w.pth"), tmp_path / "small.pth")
    told = model_spec(tmp_path / "small.pth", {"width": 64, "height": 64})
    assert _logits(load_model(tmp_path / "small.pth", told), told).equal(_logits(plain, spec))


# Files of older versions of the library


@pytest.mark.filterwarnings("ignore:.*decoder_use_batchnorm:DeprecationWarning")
@pytest.mark.parametrize("normalised", [True, False])
def test_an_old_argument_is_translated(weights: Weights, normalised: bool) -> None:
    spec = _spec("Unet", "resnet18", **SHALLOW, decoder_use_batchnorm=normalised)
    plain = _plain(spec)
    assert _logits(load_model(weights(plain), spec), spec).equal(_logits(plain, spec))


def test_an_old_pretrained_folder_is_translated(tmp_path: Path) -> None:
    spec = _spec("PSPNet", "resnet18")
    plain: Any = _plain(spec)
    plain.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["decoder_use_norm"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"psp_use_batchnorm": True}))
    told = model_spec(tmp_path, {"height": 64, "width": 64})
    assert _logits(load_model(tmp_path, told), told).equal(_logits(plain, told))


@pytest.mark.parametrize(
    ("encoder", "old_names"),
    [
        ("mobilenet_v2", {"classifier.1.weight": "", "classifier.1.bias": ""}),
        ("resnet18", {"fc.weight": "", "fc.bias": ""}),
        ("efficientnet-b0", {"_fc.weight": "", "_fc.bias": ""}),
        ("vgg11", {"classifier.0.weight": "", "classifier.6.bias": ""}),
        (
            "densenet121",
            {"features.denseblock1.denselayer1.norm.1.weight": "features.denseblock1.denselayer1.norm1.weight"},
        ),
        ("mit_b0", {"head.weight": "", "head.bias": ""}),
    ],
)
def test_old_names_of_an_encoder_are_translated(tmp_path: Path, encoder: str, old_names: dict[str, str]) -> None:
    import torch

    spec = _spec("FPN", encoder)
    plain = _plain(spec)
    state = plain.state_dict()
    for old, new in old_names.items():
        state[f"encoder.{old}"] = state.pop(f"encoder.{new}") if new else torch.ones(2)
    torch.save(state, tmp_path / "w.pth")
    assert _logits(load_model(tmp_path / "w.pth", spec), spec).equal(_logits(plain, spec))


@pytest.mark.filterwarnings("ignore:.*timm-:DeprecationWarning")
def test_names_from_before_the_universal_encoder_are_translated(tmp_path: Path) -> None:
    import torch

    spec = _spec("FPN", "timm-regnetx_002")
    plain = _plain(spec)
    state = {name.replace("encoder.model.", "encoder."): tensor for name, tensor in plain.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    assert _logits(load_model(tmp_path / "w.pth", spec), spec).equal(_logits(plain, spec))


# Weights that do not fit


FOUND = [
    (_spec("Unet", "resnet18", **DEEP), "--arch Unet --encoder resnet18 --in-channels 3 --classes 3"),
    (_spec("Unet", "resnet18", **SHALLOW), "--encoder-depth 3 --decoder-channels 16,8,8"),
    (_spec("Unet", "efficientnet-b0", **SHALLOW), "--arch Unet --encoder efficientnet-b0"),
    (_spec("FPN", "mobilenet_v2", decoder_pyramid_channels=128), "--model-arg decoder_pyramid_channels=128"),
    (_spec("FPN", "resnet18", decoder_merge_policy="cat"), "--model-arg decoder_merge_policy=cat"),
    (_spec("Linknet", "resnet18", decoder_use_norm=False), "--model-arg decoder_use_norm=false"),
    (_spec("MAnet", "resnet18", decoder_channels=[64, 48, 32, 24, 16]), "--decoder-channels 64,48,32,24,16"),
]


@pytest.mark.parametrize(("have", "advice"), FOUND, ids=str)
def test_without_a_spec_the_hint_has_every_option_that_the_weights_tell(
    have: ModelSpec, advice: str, weights: Weights
) -> None:
    path = weights(_plain(have))
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_model(path)
    assert advice in caught.value.hint
    options = shlex.split(caught.value.hint.partition("pass ")[2])
    given = spec_overrides(**click_values(options))
    load_model(path, ModelSpec.with_overrides(None, {**given, "height": 64, "width": 64}))


@pytest.mark.slow
def test_weights_of_an_unknown_encoder_name_the_architecture_at_least(weights: Weights) -> None:
    path = weights(_plain(_spec("FPN", "tu-convnext_atto")))
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_model(path)
    assert "pass --arch FPN, and the timm encoder" in caught.value.hint
    assert "--encoder tu-NAME" in caught.value.hint


def click_values(options: list[str]) -> dict[str, Any]:
    """The values of model options, as a command would get them."""

    @click.command()
    @model_options
    def command(**values: Any) -> dict[str, Any]:
        return values

    return dict(command.main(options, standalone_mode=False))


@pytest.mark.parametrize(
    ("have", "want", "advice"),
    [
        ({"decoder_attention_type": "scse"}, {}, "--model-arg decoder_attention_type=scse"),
        ({}, {"decoder_attention_type": "scse"}, "--model-arg decoder_attention_type=null"),
        (
            {"decoder_use_norm": {"type": "instancenorm", "affine": True}},
            {},
            """--model-arg 'decoder_use_norm={"type": "instancenorm", "affine": true}'""",
        ),
    ],
)
def test_arguments_that_the_names_of_weights_tell_are_named(
    have: dict[str, Any], want: dict[str, Any], advice: str, weights: Weights
) -> None:
    wide = {"encoder_depth": 3, "decoder_channels": [32, 16, 16]}
    specs = (_spec("Unet", "resnet18", **wide, **arguments) for arguments in (have, want))
    assert _misfit(*specs, weights).hint == f"the weights are of another model: pass {advice}"


def _misfit(have: ModelSpec, want: ModelSpec, weights: Weights) -> CheckpointError:
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_model(weights(_plain(have)), want)
    assert "w.pth" in caught.value.message
    assert str(want) in caught.value.message
    return caught.value


TINY = ModelSpec(encoder_name="resnet18", height=32, width=32, arguments=SHALLOW)
DEEPER = {"encoder_depth": 4, "decoder_channels": [16, 8, 8, 8]}
WIDER = {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}


@pytest.mark.parametrize(
    ("have", "want", "told", "advice"),
    [
        ({"encoder_name": "resnet34"}, {}, "30 unexpected (encoder.layer1.2.", "--encoder"),
        ({}, {"encoder_name": "resnet34"}, "30 keys missing (encoder.layer1.2.", "--encoder"),
        ({"encoder_name": "resnet50"}, {"encoder_name": "resnext50_32x4d"}, "of another shape", "--encoder"),
        ({"in_channels": 3}, {}, "encoder.conv1.weight (64, 3, 7, 7) not (64, 1, 7, 7)", "--in-channels 3"),
        ({}, {"in_channels": 3}, "encoder.conv1.weight (64, 1, 7, 7) not (64, 3, 7, 7)", "--in-channels 1"),
        ({"classes": 4}, {}, "segmentation_head.0.bias (4,) not (1,)", "--classes 4"),
        ({}, {"classes": 4}, "segmentation_head.0.bias (1,) not (4,)", "--classes 1"),
        ({"arguments": WIDER}, {}, "decoder.blocks.x_0_0.", "--decoder-channels"),
        ({"arguments": DEEPER}, {}, "decoder.blocks.x_", "--encoder-depth"),
        ({}, {"arguments": DEEPER}, "decoder.blocks.x_", "--encoder-depth"),
        ({"arch": "Unet"}, {}, "decoder.blocks.", "--arch"),
    ],
)
def test_a_misfit_is_shown_and_explained(
    have: dict[str, Any], want: dict[str, Any], told: str, advice: str, weights: Weights
) -> None:
    error = _misfit(replace(TINY, **have), replace(TINY, **want), weights)
    assert told in error.message
    assert advice in error.hint.split(": ", 1)[1]


@pytest.mark.slow  # all encoders are tried
def test_a_file_without_the_stages_of_a_deeper_model_is_explained(tiny_checkpoint: Path, tiny_spec: ModelSpec) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.layer3") as caught:
        load_model(tiny_checkpoint, replace(tiny_spec, arguments=DEEPER))
    assert "--encoder-depth" in caught.value.hint


@pytest.mark.parametrize(
    ("kept", "lacking"),
    [(("encoder.",), "decoder and the segmentation_head"), (("encoder.", "decoder."), "segmentation_head")],
)
def test_a_file_with_a_part_of_the_model_says_what_it_lacks(
    tiny_checkpoint: Path, tiny_spec: ModelSpec, tmp_path: Path, kept: tuple[str, ...], lacking: str
) -> None:
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "part.pth"
    torch.save({name: tensor for name, tensor in load_file(tiny_checkpoint).items() if name.startswith(kept)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, tiny_spec)
    assert caught.value.hint == f"it has no weights of the {lacking}: pass a checkpoint of the whole model"


def test_a_few_keys_stand_for_many(weights: Weights) -> None:
    message = _misfit(replace(TINY, encoder_name="resnet34"), TINY, weights).message
    assert message.count("encoder.") == 3
    assert "…" in message


def test_a_narrower_encoder_is_not_taken_for_other_channels(weights: Weights) -> None:
    have, want = _spec("Unet", "tu-mobilenetv2_050", **SHALLOW), _spec("Unet", "tu-mobilenetv2_100", **SHALLOW)
    assert "--encoder" in _misfit(have, want, weights).hint


@pytest.mark.parametrize("names", [["features.0.weight", "classifier.bias"], ["encoder.embed.weight", "lm_head.bias"]])
def test_a_foreign_checkpoint_is_told_apart(tmp_path: Path, tiny_spec: ModelSpec, names: list[str]) -> None:
    import torch

    torch.save({name: torch.ones(2) for name in names}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt does not fit") as caught:
        load_model(tmp_path / "foreign.pt", tiny_spec)
    assert names[0] in caught.value.message
    assert "not a segmentation_models_pytorch checkpoint" in caught.value.hint
    assert "torch.onnx.export" in caught.value.hint
    assert "--model FILE.onnx" in caught.value.hint


@pytest.mark.parametrize("whole", [False, True])
def test_a_model_of_torchvision_is_told_what_to_do_and_compared_with_no_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    import torch
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    torch.save(model if whole else model.state_dict(), tmp_path / "w.pth")
    spec = model_spec(tmp_path / "w.pth", {"arch": "DeepLabV3", "height": 64, "width": 64})
    assert not caplog.messages
    compared: list[str] = []
    monkeypatch.setattr("segx.model.smp._encoder_shapes", lambda name, _: compared.append(name) or {})
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "w.pth", spec)
    assert compared == []
    assert "torch.onnx.export" in caught.value.hint
    assert "--model FILE.onnx" in caught.value.hint


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["decoder.blocks.x_0_0.conv1.0.weight", "encoder.bn1.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_spec: ModelSpec, value: str, name: str) -> None:
    import torch

    state = _plain(tiny_spec).state_dict()
    state[name].view(-1)[-1] = float(value)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=name) as caught:
        load_model(tmp_path / "w.pt", tiny_spec)
    assert caught.value.hint


# Models that cannot be built


@pytest.mark.parametrize("arch", ["Unett", "unet", "", "__name__", "encoders", "create_model"])
def test_an_unknown_architecture_lists_the_known_ones(arch: str) -> None:
    with pytest.raises(UsageError, match="no architecture") as caught:
        build_module(ModelSpec(arch=arch))
    assert "UnetPlusPlus" in caught.value.hint
    assert "FPN" in caught.value.hint


@pytest.mark.parametrize("encoder", ["resnet35", "", "nonsense", "Resnet34"])
def test_an_unknown_encoder_suggests_others(encoder: str) -> None:
    with pytest.raises(UsageError, match="encoder") as caught:
        build_module(ModelSpec(encoder_name=encoder))
    assert "did you mean" in caught.value.hint


def test_a_misspelled_encoder_suggests_the_right_one() -> None:
    with pytest.raises(UsageError, match="resnet_34") as caught:
        build_module(ModelSpec(encoder_name="resnet_34"))
    assert "resnet34" in caught.value.hint


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder_name": "tu-no_such_model"}, "no_such_model"),
        ({"arguments": {"bogus": 1}}, "bogus"),
        ({"arguments": {"encoder_depth": 9}}, "9"),
        ({"arguments": {"encoder_depth": 3, "decoder_channels": [8]}}, "decoder_channels|depth"),
        ({"arguments": {"decoder_channels": "many"}}, "many"),
        ({"arguments": {"aux_params": {"classes": 2}}}, "aux_params"),
        ({"arguments": {"classes": 3}}, "classes"),
        ({"arguments": {"encoder_name": "resnet50"}}, "encoder_name"),
        # Its attention divides the 8 channels by 16.
        ({"arguments": {**SHALLOW, "decoder_attention_type": "scse"}}, "UnetPlusPlus"),
        ({"arch": "PAN", "encoder_name": "resnet18", "height": 64, "width": 64, "arguments": {}}, "PAN"),
        ({"encoder_name": "tu-swin_tiny_patch4_window7_224", "in_channels": 3, "height": 64, "width": 64}, "64"),
    ],
)
def test_a_model_that_cannot_be_built_is_wrong_usage(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build_module(replace(ModelSpec(), **changes))
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("width", "height", "depth", "advice"),
    [(250, 250, 4, "256x256"), (256, 100, 4, "256x112"), (33, 64, 3, "40x64"), (1, 1, 5, "32x32")],
)
def test_an_input_that_does_not_suit_the_stride_names_the_next_that_does(
    width: int, height: int, depth: int, advice: str
) -> None:
    arguments = {"encoder_depth": depth, "decoder_channels": [8] * depth}
    with pytest.raises(UsageError, match=f"{width}x{height} is not a multiple .* {2**depth}") as caught:
        build_module(ModelSpec(encoder_name="resnet18", width=width, height=height, arguments=arguments))
    assert f"--input-size {advice}" in caught.value.hint


def test_a_model_for_any_size_takes_any_size(weights: Weights) -> None:
    spec = replace(_spec("DeepLabV3", "resnet18"), height=48, width=40)
    assert _logits(load_model(weights(_plain(spec)), spec), spec).shape == (2, 3, 48, 40)
