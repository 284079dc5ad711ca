"""The wall: the library needs few packages, does not import the lab on top of it, and mentions no configuration."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pds

ROOT = Path(__file__).parents[1]
OUTSIDE = ("pds.lab", "pds.integrations")  # of the library
LIBRARY = sorted(
    module.name
    for module in pkgutil.walk_packages(pds.__path__, "pds.")
    if not f"{module.name}.".startswith(tuple(f"{room}." for room in OUTSIDE))
)
# tqdm.contrib and torch's compiler load optional packages. The allowed modules are the packages themselves and their own
# imports.
PACKAGES = "torch, numpy, PIL.Image, safetensors.torch, tqdm"


def imports(path):
    """The modules that a file imports anywhere in it, by full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_library_loads_its_five_packages_alone():
    program = f"""
import sys
import {PACKAGES}
allowed = {{name.partition(".")[0] for name in sys.modules}} | set(sys.stdlib_module_names) | {{"pds"}}
import importlib
for name in {LIBRARY!r}:
    before = set(sys.modules)
    importlib.import_module(name)
    loaded = {{module.partition(".")[0] for module in set(sys.modules) - before}} - allowed
    if loaded:
        print(name, "loads", *sorted(loaded))
    allowed |= loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("pds", ("experiments",)),
        ("pds", ("pds.lab", "hydra", "omegaconf", "wandb")),  # the library, wherever in a file it imports
        ("pds/processes", ("pds.samplers", "pds.models", "pds.preconditioning", "pds.generation", "pds.evaluation")),
        ("pds/preconditioning", ("pds.samplers", "pds.models", "pds.generation", "pds.evaluation")),
        ("pds/samplers", ("pds.models", "pds.generation", "pds.evaluation")),
        ("pds/models", ("pds.samplers", "pds.preconditioning", "pds.generation", "pds.evaluation")),
    ],
)
def test_imports_point_one_way(room, forbidden):
    library = [path for path in (ROOT / room).rglob("*.py") if "lab" not in path.relative_to(ROOT).parts]
    paths = (ROOT / room).rglob("*.py") if forbidden == ("experiments",) else library
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if f"{name}.".startswith(tuple(f"{module}." for module in forbidden)) and not _for_checkers(path, name)
    ]
    assert not found


def _for_checkers(path, name):
    """Whether a file imports a name for type checkers alone."""
    blocks = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    inside = {f"{node.module}.{alias.name}" for block in blocks for node in block.body for alias in node.names}
    return name in inside


# A group of the configuration with one of its keys, or with a choice.
KEY = re.compile(r"\b(model|dataset|filter|solenoid|sampler|metric|tracker|trainer|published)(([./][A-Za-z_]+)+|(?==))")


def messages(path):
    """The strings of a file that its user may read: all of them, except docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(body[0].value)
        for body in (node.body for node in ast.walk(tree) if isinstance(node, documented))
        if body and isinstance(body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(id(node.value))  # of an attribute
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_the_library_speaks_of_no_configuration_key():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "pds").rglob("*.py"))
        if path.relative_to(ROOT / "pds").parts[0] not in ("lab", "integrations")
        for line, text in messages(path)
        if KEY.search(text)
    ]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("set model.checkpoint to a file", True),
        ("use filter=none", True),
        ("sampler/corrector=none", True),
        ("the filter must be positive", False),
        ("sampler. And", False),
        ("pds.models.scores", False),
    ],
)
def test_what_counts_as_a_configuration_key(text, told):
    assert bool(KEY.search(text)) == told
