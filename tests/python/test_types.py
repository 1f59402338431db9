"""What type checkers and isinstance know of the package."""

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kvmesh

HERE = Path(__file__).parent
STUB = Path(kvmesh._kvmesh.__file__).with_name("_kvmesh.pyi")
PARTS = ["kvmesh", "kvmesh.errors", "kvmesh.generate", "kvmesh.torch", "kvmesh.transformers"]


def test_a_mesh_is_an_instance_of_its_class():
    def body(mesh):
        assert isinstance(mesh, kvmesh.Mesh)

    kvmesh.run_on_threads(2, body)
    with kvmesh.Mesh() as mesh:
        body(mesh)
    assert not isinstance(kvmesh.causal(), kvmesh.Mesh)
    with pytest.raises(TypeError):
        kvmesh.Mesh("cpu")


def test_all_names_what_there_is():
    assert kvmesh.__all__ == sorted(kvmesh.__all__)
    there = {name for name, value in vars(kvmesh).items()
             if not name.startswith("_") and (name == "errors" or not inspect.ismodule(value))}
    assert set(kvmesh.__all__) == there


def stub_classes():
    tree = ast.parse(STUB.read_text())
    return {node.name: {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
            for node in tree.body if isinstance(node, ast.ClassDef)}


def returned(function):
    return ast.unparse(function.returns)


def test_the_stub_says_what_calls_return():
    classes = stub_classes()
    assert returned(classes["KvCache"]["plan"]) == "StepPlan"
    assert returned(classes["KvCache"]["try_plan"]) == "StepPlan | None"
    assert returned(classes["StepPlan"]["run"]) == "Any"
    assert returned(classes["StepPlan"]["output_shape"]) == "tuple[int, int, int]"
    assert returned(classes["ExternalPool"]["plan"]) == "ExternalPlan"
    assert returned(classes["Expr"]["__ge__"]) == "Expr"
    options = {each.arg for each in classes["Mesh"]["__init__"].args.kwonlyargs}
    assert {"device", "head_parallel", "comm", "group", "rendezvous"} <= options
    closable = [name for name, members in classes.items() if "close" in members]
    assert {"Mesh", "KvCache", "StepPlan", "ExternalPool", "ExternalPlan", "Combiner"} <= set(closable)
    for name in closable:
        assert returned(classes[name]["__enter__"]) == name
        assert returned(classes[name]["__exit__"]) == "None"  # bool: it might hide errors


def test_the_stub_has_every_public_class():
    assert {name for name in kvmesh.__all__
            if getattr(kvmesh, name).__class__ is type(kvmesh.Mesh)} <= set(stub_classes())


def functions_of(module):
    """The functions and methods in Python that a module shows, by name."""
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    for name in names:
        value = getattr(module, name)
        of = getattr(value, "__module__", "")
        if not of.startswith("kvmesh") or of == "kvmesh._kvmesh":  # which the stub is of
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for member, of in vars(value).items():
                of = of.fget if isinstance(of, property) else of
                if inspect.isfunction(of) and (not member.startswith("_") or member == "__init__"):
                    yield f"{name}.{member}", of


@pytest.mark.parametrize("part", PARTS)
def test_python_functions_are_annotated(part):
    for needed in {"kvmesh.torch": ["torch"], "kvmesh.transformers": ["torch", "transformers"]}.get(part, []):
        pytest.importorskip(needed)
    module = importlib.import_module(part)
    seen = dict(functions_of(module))
    for name, function in seen.items():
        signature = inspect.signature(function)
        bare = [each.name for each in signature.parameters.values()
                if each.annotation is each.empty and each.name != "self"]
        assert not bare and signature.return_annotation is not signature.empty, (part, name, bare)
    assert seen or part == "kvmesh.errors"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_program_passes_a_type_checker(tmp_path):
    environment = dict(os.environ)
    if "site-packages" not in STUB.parts:  # where mypy looks by itself
        environment["MYPYPATH"] = str(STUB.parent.parent)

    def check(program):
        return subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent",
                               "--cache-dir", str(tmp_path / "cache"), str(program)],
                              capture_output=True, text=True, env=environment)

    good = check(HERE / "typed_client.py")
    assert good.returncode == 0, good.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import kvmesh\n"
                     "kvmesh.Mesh(devices='cpu')\n"
                     "kvmesh.combine('mesh', 1, 2)\n"
                     "kvmesh.run_on_threads(2, lambda: 5)\n")
    said = check(wrong).stdout.splitlines()
    assert {line.split(":")[1] for line in said if ": error:" in line} == {"2", "3", "4"}
