"""The one exception that a user can act on."""


class PDSError(ValueError):
    """A wrong input, a missing file or an impossible setting, said in one sentence with the fix.

    Entry points print its message without a traceback; every other exception is a defect of this library.
    """


class MissingError(PDSError):
    """What only the user can provide is not there: a checkpoint, a data set, a network to download, an optional package."""
