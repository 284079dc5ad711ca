"""The exceptions that a user can act on."""

from __future__ import annotations


class PDSError(ValueError):
    """A wrong input, a missing file or an impossible setting, said in one sentence with the fix.

    Entry points print its message without a traceback; every other exception is a defect of this library.
    """


class MissingError(PDSError):
    """Something that only the user can provide is absent: a checkpoint, a data set, a network to download, a package."""


class OptionError(PDSError):
    """An option has a value that it cannot have.

    The library knows the option by its argument's name alone. `pds.lab` knows the configuration node that holds the argument,
    and puts the node's key in front of the name.

    Args:
        name: the argument.
        problem: the rest of the sentence, as in "must be positive, got -1".
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def under(self, key: str) -> OptionError:
        """The same error, told with the key of the node that holds the option."""
        return OptionError(f"{key}.{self.name}", self.problem)
