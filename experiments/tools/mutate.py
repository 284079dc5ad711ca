"""Break the code at places that a seed picks, and see whether the tests notice: experiments/tools/mutate.py [SEED [COUNT]]

Each mutant changes one operator, comparison or number in samplers/, preconditioning/ or processes/, in a copy of the checkout.
The tests of these rooms must then fail. A mutant that survives is shown; the exit status is the number of survivors.
"""

from __future__ import annotations

import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("samplers", "preconditioning", "processes")
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes of arithmetic that runs, without annotations, messages and docstrings."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            skipped |= set(ast.walk(node.annotation))
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            skipped |= set(ast.walk(node.returns))
        if isinstance(node, ast.JoinedStr | ast.Raise):
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        operator = isinstance(node, ast.BinOp) and type(node.op) in OPERATORS
        comparison = isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0
        if operator or comparison or number:
            yield node


def mutate(node: ast.AST) -> None:
    """Change one node in place."""
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1


def main(seed: int = 0, count: int = 10) -> int:
    """Try `count` mutants one after the other; returns the number that no test noticed."""
    choice, survivors = random.Random(seed), 0
    files = [path for room in ROOMS for path in sorted((ROOT / "pds" / room).glob("*.py"))]
    candidates = [(path, i) for path in files for i, _ in enumerate(places(ast.parse(path.read_text(encoding="utf-8"))))]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", ".*_cache"))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{room}" for room in ROOMS)]
        if subprocess.run(command, cwd=copy, check=False).returncode:
            sys.exit("error: these tests fail without a mutant: mend them first")
        for path, i in choice.sample(candidates, count):
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            node = list(places(tree))[i]
            before = ast.unparse(node)
            mutate(node)
            mutant = copy / path.relative_to(ROOT)
            mutant.write_text(ast.unparse(tree), encoding="utf-8")
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
            mutant.write_text(source, encoding="utf-8")
            failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
            survivors += done.returncode == 0
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            print(
                f"{where}: {before} -> {ast.unparse(node)}: {failed or ('SURVIVED' if not done.returncode else 'broken')}",
                flush=True,
            )
    return survivors


if __name__ == "__main__":
    if {"--help", "-h"} & {*sys.argv}:
        print(__doc__)
        sys.exit()
    if len(sys.argv) > 3 or not all(word.isascii() and word.isdigit() for word in sys.argv[1:]):
        sys.exit("error: give at most two whole numbers: experiments/tools/mutate.py [SEED [COUNT]]")
    sys.exit(main(*map(int, sys.argv[1:])))
