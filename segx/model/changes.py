"""What a whole module of a checkpoint computes otherwise than the module that is built from its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segx.model.checkpoint import ENDS, kind_of_module, tensors_of_module
from segx.model.pickled import Object, entries

if TYPE_CHECKING:
    import torch

# Classes that compute the same in eval mode, by their names in lower case: those of several versions of the libraries,
# and those that the training needs.
_SAME = {
    "swish": "silu",
    "memoryefficientswish": "silu",
    "swishme": "silu",
    "syncbatchnorm": "batchnorm2d",
    "upsamplingbilinear2d": "upsample",
    "upsamplingnearest2d": "upsample",
    "nondynamicallyquantizablelinear": "linear",
    "modulelist": "sequential",
    "moduledict": "sequential",
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout"), "identity"),
    **dict.fromkeys(("featurealphadropout", "droppath", "dropblock2d"), "identity"),
}
# Attributes that decide nothing in eval mode, or that the names and shapes of the weights tell.
_UNIMPORTANT = {"training", "inplace", "momentum", "p", "name"}
# Attributes of other classes than torch's that decide what they compute; the others may be those of one version.
_DECISIVE = {
    "align_corners", "alpha", "approximate", "ceil_mode", "count_include_pad", "dilation", "eps", "groups",
    "interpolation_mode", "kernel_size", "mode", "negative_slope", "num_groups", "num_heads", "output_padding",
    "output_size", "padding", "padding_mode", "scale_factor", "size", "stride",
}  # fmt: skip


def change(saved: Object, built: torch.nn.Module, path: str = "") -> str:
    """Return the first difference between a saved module and one built for its weights; empty if there is none.

    Only what both have is compared: other versions of the libraries rename classes and add attributes and parts.
    """
    import torch

    own, theirs = entries(saved), vars(built)
    kind, expected = kind_of_module(saved), type(built).__name__
    if expected == "Activation":
        inner = entries(own.get("_modules")).get("activation", saved)
        last = kind_of_module(inner) if isinstance(inner, Object) else ""
        return "" if last in ENDS else f"{path} is {last}"
    parts = {name: each for name, each in entries(own.get("_modules")).items() if isinstance(each, Object)}
    built_parts = {name: each for name, each in theirs["_modules"].items() if each is not None}
    one, other = _computing(kind, parts), _computing(expected, built_parts)
    known = {name.lower() for name, each in vars(torch.nn).items() if isinstance(each, type)}
    if one != other and {one, other} <= known:
        if "identity" in (one, other) and (any(tensors_of_module(saved)) or next(built.parameters(), None) is not None):
            return ""  # a part that never runs: other weights are compared by name
        return f"{path} is {kind}, not {expected}"
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        if own.get(hooks) and not theirs[hooks]:
            return f"{path or kind} has {hooks.strip('_').replace('_', ' ')}"
    of_torch = saved.name.startswith("torch.nn.") and type(built).__module__.startswith("torch.nn.")
    for name in own:
        if name not in theirs or name.startswith("_") or name in _UNIMPORTANT or not (of_torch or name in _DECISIVE):
            continue
        if _is_plain(own[name]) and _is_plain(theirs[name]) and _value(own[name]) != _value(theirs[name]):
            return f"{path} has {name}={own[name]}, not {theirs[name]}"
    return _change_of_parts(parts, built_parts, path, in_order=isinstance(built, torch.nn.Sequential))


def _change_of_parts(saved: dict[Any, Object], built: dict[str, torch.nn.Module], path: str, *, in_order: bool) -> str:
    for name, part in saved.items():
        inner = f"{path}.{name}".lstrip(".")
        if name in built:
            if name != "classification_head" and (found := change(part, built[name], inner)):
                return found
        elif in_order and _computing(kind_of_module(part), entries(part).get("_modules")) != "identity":
            return f"{inner} is {kind_of_module(part)}, which is not part of it"
    for name in built if in_order else ():
        if name not in saved and _computing(type(built[name]).__name__, vars(built[name])["_modules"]) != "identity":
            return f"{path}.{name}, {type(built[name]).__name__}, is missing"
    return ""


def _computing(kind: str, parts: Any) -> str:
    """Return a name that is the same for classes that compute the same."""
    name = _SAME.get(kind.lower(), kind.lower())
    return "identity" if name == "sequential" and not parts else name


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return all(part is None or isinstance(part, bool | int | float | str) for part in parts)


def _value(value: Any) -> Any:
    """Return equal values for 2 and (2, 2), and for None and False."""
    if not isinstance(value, list | tuple):
        return value or False
    return value[0] if len(set(value)) == 1 else tuple(value)
