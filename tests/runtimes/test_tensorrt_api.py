"""Every name, argument and enum member of TensorRT that segx uses, followed through the real bindings' signatures.

``tensorrt_names.json`` shows them for 10.16 and 11.4. Against it the file is checked everywhere; it is checked itself
where the wheels are: the bindings import over empty libraries, which a C compiler makes here.

    pip download --no-deps --only-binary=:all: --dest FOLDER tensorrt-cu13-bindings==10.16.1.11   # and ==11.4.0.106
    SEGX_TENSORRT_BINDINGS=FOLDER pytest tests/runtimes/test_tensorrt_api.py

With ``SEGX_TENSORRT_UPDATE=1`` as well it is written anew, which a call of something new needs.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from segx.runtimes import tensorrt_api

FILE = Path(tensorrt_api.__file__)
SHOWN = Path(__file__).with_name("tensorrt_names.json")

# A class of the bindings -> its members; a member's "kind" is method, property or value.
Names = Mapping[str, Mapping[str, Mapping[str, Any]]]

STUBBED = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip

DUMP = r"""
import json, re
import tensorrt_bindings as trt

def member(name, value):
    doc = value.__doc__ or ""
    if isinstance(value, property):
        doc = value.fget.__doc__ or ""
        return {"kind": "property", "gives": doc.strip().partition("-> ")[2], "writable": value.fset is not None}
    if callable(value) and not isinstance(value, type):
        lines = re.findall(rf"^(?:\d+\. )?({name}\(.*)$", doc, flags=re.M)
        return {"kind": "method", "signatures": [line for line in lines if "*args" not in line]}
    return {"kind": "value"}

classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
names = {
    name: {key: member(key, value) for key, value in vars(kind).items() if key == "__init__" or not key.startswith("_")}
    for name, kind in classes.items()
}
print(json.dumps({"version": trt.__version__, "names": names}))
"""


@dataclass(frozen=True)
class Kind:
    """What an expression is: the module, a class of it, an instance, a bound method, or many of one."""

    what: str
    cls: str = ""
    member: str = ""


@dataclass
class Walk(ast.NodeVisitor):
    """Follows the thin file through the bindings; ``used`` and ``problems`` are what it finds."""

    names: Names
    used: set[tuple[str, str]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    # Attributes of what is none of TensorRT's, as far as one can see.
    others: set[str] = field(default_factory=set)
    scopes: list[dict[str, Kind]] = field(default_factory=lambda: [{}])
    own: dict[str, Kind] = field(default_factory=dict)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        # `self.NAME` of the class: from annotations, and from parameters that are kept.
        self.own = {}
        for inner in ast.walk(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                self._keep(inner.target.attr, self._annotated(inner.annotation))
            if isinstance(inner, ast.FunctionDef):
                given = {a.arg: self._annotated(a.annotation) for a in (*inner.args.args, *inner.args.kwonlyargs)}
                for line in ast.walk(inner):
                    if isinstance(line, ast.Assign) and isinstance(line.value, ast.Name):
                        for target in line.targets:
                            if isinstance(target, ast.Attribute):
                                self._keep(target.attr, given.get(line.value.id))
        self.generic_visit(node)
        self.own = {}

    def _keep(self, name: str, kind: Kind | None) -> None:
        if kind:
            self.own[name] = kind

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = (*node.args.args, *node.args.kwonlyargs)
        kinds = {a.arg: kind for a in arguments if (kind := self._annotated(a.annotation))}
        self.scopes.append({**self.scopes[-1], **kinds})
        for line in node.body:
            self.visit(line)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.kind(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._name(target.id, value)
            elif isinstance(target, ast.Attribute) and (base := self.kind(target.value)):
                self._set(base, target.attr)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.kind(node.value)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.target, node.iter)
        for line in node.body:
            self.visit(line)

    def visit_Expr(self, node: ast.Expr) -> None:
        self.kind(node.value)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr):
            self.kind(node)
        else:
            super().generic_visit(node)

    def kind(self, node: ast.expr) -> Kind | None:
        """What an expression is; None for what is none of TensorRT's."""
        match node:
            case ast.Name():
                found = self.scopes[-1].get(node.id)
            case ast.NamedExpr():
                found = self.kind(node.value)
                self._name(node.target.id, found)
            case ast.Attribute():
                found = self._attribute(node)
            case ast.Call():
                found = self._call(node)
            case ast.GeneratorExp() | ast.ListComp() | ast.SetComp():
                found = self._comprehension(node)
            case ast.Subscript():
                base = self.kind(node.value)
                found = Kind("instance", base.cls) if base and base.what == "many" else None
            case _:
                found = None
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.kind(child)
        return found

    def _comprehension(self, node: ast.GeneratorExp | ast.ListComp | ast.SetComp) -> Kind | None:
        self.scopes.append(dict(self.scopes[-1]))
        for part in node.generators:
            self._loop(part.target, part.iter)
            for condition in part.ifs:
                self.kind(condition)
        value = self.kind(node.elt)
        self.scopes.pop()
        return Kind("many", value.cls) if value else None

    def _name(self, name: str, kind: Kind | None) -> None:
        self.scopes[-1].pop(name, None)
        if kind:
            self.scopes[-1][name] = kind

    def _loop(self, target: ast.expr, over: ast.expr) -> None:
        many = self.kind(over)
        if isinstance(target, ast.Name):
            self._name(target.id, Kind("instance", many.cls) if many and many.what == "many" else None)

    def _attribute(self, node: ast.Attribute) -> Kind | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self.own:
            return self.own[node.attr]
        base = self.kind(node.value)
        if base is None:
            self.others.add(node.attr)
            return None
        if base.what == "module":
            return self._of_module(node.attr, node.lineno)
        told = self._member(base, node.attr, node.lineno)
        if told is None:
            return None
        kinds = {"method": Kind("method", base.cls, node.attr), "value": Kind("instance", base.cls)}
        return self._given(told["gives"]) if told["kind"] == "property" else kinds[told["kind"]]

    def _of_module(self, name: str, line: int) -> Kind | None:
        if name in self.names:
            return Kind("class", name)
        if name != "__version__":
            self.problems.append(f"line {line}: there is no {name}")
        return None

    def _member(self, base: Kind, name: str, line: int) -> Mapping[str, Any] | None:
        if name not in self.names[base.cls]:
            self.problems.append(f"line {line}: {base.cls} has no {name}")
            return None
        self.used.add((base.cls, name))
        return self.names[base.cls][name]

    def _set(self, base: Kind, name: str) -> None:
        told = self._member(base, name, 0)
        if told and not told.get("writable"):
            self.problems.append(f"{base.cls}.{name} cannot be set")

    def _call(self, node: ast.Call) -> Kind | None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.kind(argument)
        if isinstance(node.func, ast.Name) and node.func.id == "bindings":
            return Kind("module")
        called = self.kind(node.func)
        if called is None or called.what not in {"class", "method"}:
            return None
        name = called.member or "__init__"
        if (told := self._member(called, name, node.lineno)) is None:
            return None
        signatures = [parsed(text) for text in told["signatures"]]
        values = [None] * (len(node.args) + 1)  # and `self`
        keywords = {str(keyword.arg): None for keyword in node.keywords}
        for signature, gives in signatures:
            try:
                signature.bind(*values, **keywords)
            except TypeError:
                continue
            return Kind("instance", called.cls) if called.what == "class" else self._given(gives)
        self.problems.append(f"line {node.lineno}: {called.cls}.{name} takes other arguments")
        return None

    def _annotated(self, node: ast.expr | None) -> Kind | None:
        text = ast.unparse(node) if node else ""
        return self._given(text) if text.startswith("tensorrt.") else None

    def _given(self, text: str) -> Kind | None:
        """What a type in a signature is."""
        last = re.sub(r"\]$", "", text).rpartition(".")[2].rpartition("::")[2]
        cls = {"IParserError": "ParserError"}.get(last, last)
        if cls not in self.names:
            return None
        return Kind("many" if text.startswith("list[") else "instance", cls)


def parsed(text: str) -> tuple[inspect.Signature, str]:
    """A signature as pybind11 writes it, and the type that it gives."""
    inside, _, gives = text.partition("(")[2].rpartition(") -> ")
    parts, depth = [""], 0
    for letter in inside:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    either, nothing = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    parameters = [
        inspect.Parameter(part.partition(":")[0].strip(), either, default=None if " = " in part else nothing)
        for part in parts
    ]
    return inspect.Signature(parameters), gives


def walked(names: Names) -> Walk:
    """The thin file, followed through these names."""
    walk = Walk(names)
    walk.visit(ast.parse(FILE.read_text()))
    return walk


def real_names(wheel: Path, folder: Path) -> tuple[str, Names]:
    """Version and names of the bindings in a wheel, imported over empty libraries in a process of their own."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler (cc) to make empty TensorRT libraries with")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    major = wheel.name.split("-")[1].partition(".")[0]
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in STUBBED))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", DUMP]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    told = json.loads(output)
    return told["version"], told["names"]


def shown_of(names: Names) -> dict[str, dict[str, Any]]:
    """Of all names those that the file uses."""
    walk = walked(names)
    used = sorted({*walk.used, ("ILogger", "log")})  # overridden, not called
    return {
        cls: {member: names[cls][member] for of, member in used if of == cls} for cls in sorted({c for c, _ in used})
    }


SHOWN_NAMES: dict[str, Names] = json.loads(SHOWN.read_text()) if SHOWN.is_file() else {}

# What the file asks of objects that are not TensorRT's: Python's own, and its own classes'.
PLAIN = {
    "ERROR", "__version__", "_log", "add_note", "append", "batch_sizes", "debug", "error", "errors", "getLogger",
    "import_module", "info", "input_shape", "items", "join", "lower", "name", "onnx", "split", "tf32", "threads",
    "timing_cache", "workspace_bytes",
}  # fmt: skip


@pytest.mark.parametrize("version", SHOWN_NAMES)
def test_every_use_fits_the_bindings(version: str) -> None:
    walk = walked(SHOWN_NAMES[version])
    assert walk.problems == []
    assert walk.used == {(cls, member) for cls, members in SHOWN_NAMES[version].items() for member in members} - {
        ("ILogger", "log")
    }


@pytest.mark.parametrize("version", SHOWN_NAMES)
def test_nothing_of_tensorrt_escapes_the_check(version: str) -> None:
    assert walked(SHOWN_NAMES[version]).others <= PLAIN


def test_both_versions_are_shown() -> None:
    assert [version.split(".")[0] for version in SHOWN_NAMES] == ["10", "11"]


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("clear_flag(trt.BuilderFlag.TF32)", "clear_flag(trt.BuilderFlag.FP16)", "BuilderFlag has no FP16"),
        ("builder.create_builder_config()", "builder.create_config()", "Builder has no create_config"),
        ("set_timing_cache(cache, ignore_mismatch=False)", "set_timing_cache(cache)", "takes other arguments"),
        (
            "set_timing_cache(cache, ignore_mismatch=False)",
            "set_timing_cache(cache, strict=1)",
            "takes other arguments",
        ),
        ("trt.OnnxParser(network, log)", "trt.OnnxParser(network)", "OnnxParser.__init__ takes other arguments"),
        ("trt.Runtime(self._log)", "trt.Executor(self._log)", "there is no Executor"),
        ("layer.get_output(0).dtype", "layer.get_output(0).kind", "ITensor has no kind"),
        ("self._runtime.max_threads = threads", "self._engine.num_layers = threads", "num_layers cannot be set"),
        ("self._context.execute_async_v3(stream)", "self._context.execute_async_v2(stream)", "has no execute_async_v2"),
    ],
)
def test_the_check_finds_what_is_wrong(before: str, after: str, problem: str) -> None:
    source = FILE.read_text()
    assert before in source
    walk = Walk(SHOWN_NAMES["11.4.0.106"])
    walk.visit(ast.parse(source.replace(before, after)))
    assert any(problem in found for found in walk.problems), walk.problems


def test_the_logger_overrides_what_the_bindings_call() -> None:
    (override,) = [
        node
        for node in ast.walk(ast.parse(FILE.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "log"
    ]
    for names in SHOWN_NAMES.values():
        (text,) = names["ILogger"]["log"]["signatures"]
        assert len(override.args.args) == len(parsed(text)[0].parameters)
        assert [a.arg for a in override.args.args[1:]] == list(parsed(text)[0].parameters)[1:]


def test_what_is_shown_is_what_the_wheels_have(tmp_path: Path) -> None:
    folder = os.environ.get("SEGX_TENSORRT_BINDINGS")
    if not folder:
        pytest.skip(
            "SEGX_TENSORRT_BINDINGS names no folder with wheels of tensorrt-cu13-bindings; see the top of this file"
        )
    wheels = sorted(Path(folder).rglob("tensorrt_cu13_bindings-*.whl"))
    assert wheels, f"no wheel of tensorrt-cu13-bindings under {folder}"
    found = dict(real_names(wheel, tmp_path / wheel.stem) for wheel in wheels)
    shown = {version: shown_of(names) for version, names in found.items()}
    for names in found.values():
        assert walked(names).problems == []
    if os.environ.get("SEGX_TENSORRT_UPDATE"):
        SHOWN.write_text(json.dumps(shown, indent=1) + "\n")
    # Wheels of other versions may lie there too: they are only followed.
    assert {version: shown.get(version) for version in SHOWN_NAMES} == SHOWN_NAMES


def test_without_tensorrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from segx.errors import RuntimeUnavailable

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable, match=r"tensorrt is not installed|cannot be loaded") as caught:
        tensorrt_api.version()
    assert "pip install 'tensorrt-cu13~=10.16'" in caught.value.hint
