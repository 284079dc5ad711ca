"""A class or a function of anyone's, as a command line names it: FILE.py:NAME or module:NAME."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pds.errors import OptionError, first_line
from pds.files import json_digest, open_regular, sha256, user_path
from pds.options import shown

MOST = 1 << 24
"""Bytes of a Python file."""


def named(text: str, option: str) -> tuple[Callable[..., Any], ModuleType]:
    """The named object, and its module.

    Raises:
        OptionError: for `option`: there is no such file, module or name, or its import fails.
    """
    source, _, name = text.rpartition(":")
    if not source or not name:
        raise OptionError(option, f"must be FILE.py:NAME or module:NAME, got {shown(text)}")
    module = _file(user_path(source), option) if source.endswith(".py") else _module(source, option)
    return _found(module, name, source, option), module


def code_digest(module: ModuleType) -> str | None:
    """The hash of the Python code of a module: of its file, and of the files of its own folder or package that it imports.

    None for a module without a file. The hash of a single file is its SHA-256.
    """
    files: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        known = waiting.pop()
        path = Path(getattr(known, "__file__", None) or "").resolve()
        if path.suffix != ".py" or path in files:
            continue
        files[path] = None
        waiting += [sys.modules[name] for name in _imports(path, known) if _beside(name, module)]
    digests = {path.as_posix(): sha256(path) for path in files}
    if len(digests) < 2:
        return next(iter(digests.values()), None)
    first = next(iter(files)).parent
    return json_digest({os.path.relpath(path, first): digest for path, digest in digests.items()})


def _imports(path: Path, module: ModuleType) -> Iterator[str]:
    """The loaded modules that the statements of a Python file import, anywhere in it."""
    package = module.__package__ or ""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (part for i in range(len(parts)) if (part := ".".join(parts[: i + 1])) in sys.modules)


def _beside(name: str, module: ModuleType) -> bool:
    """Whether a loaded module is of the code of `module`: in its folder or package, not installed, not of this library."""
    top, file = name.partition(".")[0], getattr(sys.modules[name], "__file__", None)
    if top == "pds" or not file or not module.__file__ or "site-packages" in Path(file).parts:
        return False
    if "." in module.__name__:
        return top == module.__name__.partition(".")[0]
    return Path(file).resolve().is_relative_to(Path(module.__file__).resolve().parent)


def _file(path: Path, option: str) -> ModuleType:
    """The module of a Python file. Modules beside the file can be imported, as when Python runs it."""
    if not path.is_file():
        raise OptionError(option, f"names {path}, which is no file: give FILE.py:NAME")
    open_regular(path, MOST).close()
    # A name of its own, so that no file hides a module or another file of the same name.
    whole = path.resolve()
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of any name that ends with .py
    module = importlib.util.module_from_spec(spec)
    beside = str(path.absolute().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    # Dataclasses, pickle and torch.compile look for the module of a class there.
    known = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name) if known is None else sys.modules.update({name: known})
        if not isinstance(error, Exception):
            raise
        raise refused(option, f"names {path}, which cannot be imported", error) from error
    return module


def _module(name: str, option: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise refused(option, f"names the module {name}, which cannot be imported", error) from error


def _found(module: ModuleType, name: str, source: str, option: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if not callable(found):
        own = sorted(
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )
        raise OptionError(option, f"names {name}, and {source} has no such class or function, only {', '.join(own) or 'none'}")
    return found


def refused(option: str, what: str, error: Exception) -> OptionError:
    """An error of someone's own code, in a sentence with the option that named the code."""
    return OptionError(option, f"{what}: {type(error).__name__}, {first_line(error)}")
