"""The exceptions that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def escaped(text: str, most: int | None = None, keep: str = "") -> str:
    """Return `text` with its control characters escaped, except those in `keep`; text longer than `most` loses its middle."""
    if most is not None and len(text) > most:
        kept = most - 5
        text = f"{text[: kept - kept // 3]} ... {text[len(text) - kept // 3 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text for the middle of a sentence: at most 160 characters, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory. On a CPU torch reports it as a `RuntimeError`."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


class PDSError(ValueError):
    """A wrong input, a missing file or an impossible setting, said in one sentence with the fix.

    Entry points print its message without a traceback; every other exception is a defect of this library.

    Messages quote files and users. Control characters are escaped, so that they forge no line; a long message loses its middle,
    so that it does not fill the terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message, 2000))


class MissingError(PDSError):
    """Something that only the user can provide is absent: a checkpoint, a data set, a downloadable network, or a package."""


class UnwritableError(PDSError):
    """A file cannot be written: the disk is full, or the folder belongs to someone else."""


class OptionError(PDSError):
    """An option has a value that it cannot have.

    The library knows the option by its argument's name alone. `pds.lab` knows the configuration node that holds the argument,
    and puts the node's key in front of the name.

    Args:
        name: the argument.
        problem: the rest of the sentence, as in "must be positive, got -1".
        fix: values that mend it, by argument.
    """

    def __init__(self, name: str, problem: str, fix: Mapping[str, Any] = MappingProxyType({})) -> None:
        settings = " ".join(f"{name}={spelled(value)}" for name, value in fix.items())
        super().__init__(f"{name} {problem}" + (f": set {settings}" if fix else ""))
        self.name, self.problem, self.fix = name, problem, fix

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, str, dict[str, Any]]]:
        # Workers of a launcher send their errors as pickles. Unpickling would call __init__ with the message alone.
        return OptionError, (self.name, self.problem, dict(self.fix))

    def under(self, key: str) -> OptionError:
        """The same error, with the key of the node that holds the option."""
        return OptionError(f"{key}.{self.name}", self.problem, {f"{key}.{name}": value for name, value in self.fix.items()})


def spelled(value: Any) -> str:
    """A value as written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
