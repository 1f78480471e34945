"""Build eval-mode modules from checkpoints; the only file that imports segmentation_models_pytorch."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segx.errors import CheckpointError, UsageError
from segx.model.checkpoint import read_state_dict, spec_in_checkpoint
from segx.model.spec import ModelSpec

if TYPE_CHECKING:
    import torch

_FEW = 3
_TIMM_PREFIX = "tu-"
_TIMM_PREFIXES = (_TIMM_PREFIX, "timm-")  # the older prefix, some of which the library maps to tu-
_OPTIONS = {"encoder_name": "--encoder", "in_channels": "--in-channels", "classes": "--classes"}
_BUILD_ERRORS = (TypeError, ValueError, KeyError, IndexError, AssertionError, RuntimeError)


def load_model(checkpoint: Path | str, spec: ModelSpec | None = None) -> torch.nn.Module:
    """Build the model that ``spec`` describes and load the checkpoint's weights.

    Encoder stages beyond the decoder's depth never run: they may be missing from the file, and ``Identity`` replaces
    them in the module to save memory.

    Args:
        checkpoint: ``.safetensors``, a ``.pt``/``.pth`` state dict (also wrapped), or a ``save_pretrained`` folder.
        spec: architecture arguments, input size and threshold; None uses the checkpoint's own spec, else the defaults.

    Returns:
        A float32 module on the CPU in eval mode: (N, C, H, W) float32 in [0, 1] -> (N, K, H, W) float32 logits.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the model.
        UsageError: the architecture, encoder or argument is unknown, or the input size does not fit the model.
    """
    spec = spec or spec_in_checkpoint(Path(checkpoint)) or ModelSpec()
    module = build_module(spec)
    state = read_state_dict(Path(checkpoint))
    _fill(module, state, spec, Path(checkpoint).name)
    return module


def build_module(spec: ModelSpec) -> torch.nn.Module:
    """Build the module with random weights in eval mode, without parts that never run.

    Raises:
        UsageError: the architecture, encoder or argument is unknown, or the input size does not fit the model.
    """
    import segmentation_models_pytorch as smp
    import torch

    if not inspect.isclass(kind := getattr(smp, spec.arch, None)) or not issubclass(kind, torch.nn.Module):
        known = sorted(k for k, v in vars(smp).items() if inspect.isclass(v) and issubclass(v, torch.nn.Module))
        raise UsageError(f"no architecture {spec.arch!r}", hint=f"use one of {', '.join(known)}")
    encoders = smp.encoders.get_encoder_names()
    if spec.encoder_name not in encoders and not spec.encoder_name.startswith(_TIMM_PREFIXES):
        near = difflib.get_close_matches(spec.encoder_name, encoders, n=3) or encoders[:3]
        raise UsageError(
            f"no encoder {spec.encoder_name!r}",
            hint=f"did you mean {', '.join(near)}? Use {_TIMM_PREFIX}NAME for a timm model with features",
        )
    _check_arguments(kind, spec)
    if spec.arguments.get("aux_params"):
        raise UsageError(
            "the model has a classification head (aux_params)",
            hint="remove it: only the segmentation output is exported",
        )
    arguments = {
        **spec.arguments,
        "encoder_name": spec.encoder_name,
        "encoder_weights": None,  # the default would download ImageNet weights
        "in_channels": spec.in_channels,
        "classes": spec.classes,
        "activation": None,
        "aux_params": None,
    }
    described = f"{spec.encoder_name} and {dict(spec.arguments)}"
    try:
        module: torch.nn.Module = kind(**arguments)
    except _BUILD_ERRORS as error:
        raise UsageError(
            f"{spec.arch} cannot be built with {described}: {_one_line(error)}",
            hint="check the arguments in the documentation of segmentation_models_pytorch",
        ) from error
    module.eval()
    _check_input_size(module, spec)
    try:
        _drop_dead_parts(module, spec)
    except _BUILD_ERRORS as error:
        raise UsageError(
            f"{spec.arch} with {described} cannot take {spec.width}x{spec.height} images: {_one_line(error)}",
            hint="use another --input-size, or check the model's arguments",
        ) from error
    return module


def _check_arguments(kind: type, spec: ModelSpec) -> None:
    """Reject arguments without effect: the library accepts any name and ignores unknown ones."""
    for name, option in _OPTIONS.items():
        if name in spec.arguments:
            raise UsageError(
                f"{name} is a field of the model spec, not a further argument", hint=f"pass it as {option}"
            )
    known = inspect.signature(kind).parameters
    unknown = [name for name in spec.arguments if name not in known]
    # timm's encoders take arguments of their own.
    if unknown and not spec.encoder_name.startswith(_TIMM_PREFIXES):
        raise UsageError(f"{spec.arch} has no argument {unknown[0]!r}", hint=f"use one of {', '.join(known)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_input_size(module: torch.nn.Module, spec: ModelSpec) -> None:
    stride: Any = getattr(getattr(module, "encoder", None), "output_stride", 1)
    if not getattr(module, "requires_divisible_input_shape", True):
        return
    if spec.height % stride or spec.width % stride:
        height, width = (math.ceil(n / stride) * stride for n in (spec.height, spec.width))
        raise UsageError(
            f"input size {spec.width}x{spec.height} is no multiple of the model's stride {stride}",
            hint=f"use --input-size {width}x{height}",
        )


def _drop_dead_parts(module: torch.nn.Module, spec: ModelSpec) -> None:
    """Replace encoder parts that never run by ``Identity``.

    A part is dead if no gradient reaches its parameters and it is never called; some encoders call parts and discard
    the result, and those cannot be replaced. Traced on the meta device, without arithmetic or memory.
    """
    import torch

    encoder = getattr(module, "encoder", None)
    if encoder is None:
        return
    ghost = copy.deepcopy(module).to("meta")
    called: set[str] = set()
    for name, part in ghost.get_submodule("encoder").named_modules():
        part.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    with torch.enable_grad():
        ghost(torch.empty(1, *spec.input_shape, device="meta")).sum().backward()
    dead = {
        name.removeprefix("encoder.")
        for name, parameter in ghost.named_parameters()
        if name.startswith("encoder.") and parameter.grad is None
    }
    _replace_dead(encoder, "", dead, called)


def _replace_dead(module: torch.nn.Module, prefix: str, dead: set[str], called: set[str]) -> None:
    import torch

    for name, child in module.named_children():
        parameters = [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]
        runs = any(f"{prefix}{name}.{inner}".rstrip(".") in called for inner, _ in child.named_modules())
        if parameters and not runs and dead.issuperset(parameters):
            setattr(module, name, torch.nn.Identity())
        elif not dead.isdisjoint(parameters):
            _replace_dead(child, f"{prefix}{name}.", dead, called)


def _fill(module: torch.nn.Module, state: dict[str, torch.Tensor], spec: ModelSpec, source: str) -> None:
    """Copy weights into the module after checking every name and shape.

    The library's override of ``load_state_dict`` silently drops mismatched shapes and changes its argument.
    """
    import torch

    own = {name: t for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    parts = module.named_modules()
    dropped = tuple(f"{n}." for n, m in parts if n.startswith("encoder.") and isinstance(m, torch.nn.Identity))
    given = {
        name: t
        for name, t in state.items()
        if not name.endswith("num_batches_tracked") and not name.startswith(dropped)
    }
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and own[name].shape != given[name].shape]
    if missing or unexpected or misshapen:
        found = "; ".join(
            f"{len(names)} {what} ({', '.join(shown(n) for n in names[:_FEW])}{', …' * (len(names) > _FEW)})"
            for what, names, shown in (
                ("keys missing", missing, str),
                ("unexpected", unexpected, str),
                ("of another shape", misshapen, lambda n: f"{n} {tuple(given[n].shape)} not {tuple(own[n].shape)}"),
            )
            if names
        )
        raise CheckpointError(
            f"{source} does not fit {spec}: {found}", hint=_guess(own, given, missing, unexpected, misshapen)
        )
    poisoned = [name for name, t in given.items() if not torch.isfinite(t).all()]
    if poisoned:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights, first in {poisoned[0]}",
            hint="use a checkpoint from before training diverged",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def _guess(
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    """Return a hint at the most likely cause of a mismatch."""
    if not own.keys() & given.keys():
        return (
            "no name matches: it is not a segmentation_models_pytorch checkpoint, or has another --arch and --encoder"
        )
    if misshapen and not (missing or unexpected):
        name = misshapen[0]
        mine, theirs = own[name].shape, given[name].shape
        if name.startswith("encoder.") and mine[0] == theirs[0] and mine[2:] == theirs[2:] and theirs[1] in (1, 3):
            return f"the weights seem trained with other input channels: pass --in-channels {theirs[1]}"
        if name.startswith("segmentation_head.") and mine[1:] == theirs[1:]:
            return f"the weights seem trained for another number of classes: pass --classes {theirs[0]}"
    # Prefer what the file has over what it lacks: it may come without stages that never run.
    blamed = [*misshapen, *unexpected] or missing
    if any(name.startswith("encoder.") for name in blamed):
        return "the weights seem to be of another encoder: pass the one they were trained with as --encoder"
    if any(name.startswith("decoder.") for name in blamed):
        return (
            "the weights seem to be of another decoder: pass --arch (with the library's defaults), "
            "or --encoder-depth and --decoder-channels (by default 4 and 256,128,64,32)"
        )
    return "pass the arguments the model was trained with; see `segx export --help`"
