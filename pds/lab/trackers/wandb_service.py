"""The process that Weights & Biases runs beside ours: it gets a deadline, no network where none is allowed, and an end."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from pds.errors import MissingError
from pds.files import open_regular, user_path

T = TypeVar("T")

MOST = 1 << 20
"""Bytes of a file of settings or of keys."""

LAST_CALL = 10.0
"""Seconds that the service may take to end, when all its runs have ended."""


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables of this process's environment, while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def settings() -> Any:
    """Return the settings that W&B found in the environment, in its settings files and in the folder.

    Raises:
        PDSError: a settings file is no regular file. W&B itself would wait for a pipe, and read a device without an end.
    """
    from wandb.sdk import wandb_setup

    here = user_path(os.environ.get("WANDB_DIR") or ".")
    for folder in (os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb", here / "wandb", here / ".wandb"):
        with contextlib.suppress(MissingError):
            open_regular(user_path(folder) / "settings", MOST).close()
    with environment(WANDB_SILENT="true"):
        return wandb_setup.singleton().settings


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No contact while the block runs, neither by the service, if it starts in the block, nor by W&B's telemetry."""
    found = settings()
    before = found.mode
    with environment(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false"):
        found.mode = "offline"
        try:
            yield
        finally:
            found.mode = before


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise as `call` does. A call that does not return in time is given up, and the service is ended.

    Raises:
        TimeoutError: the call did not return in time.
    """
    asked, service = _Asked(call), _process()
    asked.join(seconds)
    if asked.is_alive():
        if service is not None:
            service.kill()
        end()
        raise TimeoutError(f"no answer in {seconds:g} s")
    return asked.answer()


def end() -> None:
    """End the service at once, with all of its runs; the next run starts another."""
    process = _process()
    if process is not None:
        process.kill()
    _Asked(_teardown).join(LAST_CALL)


class _Asked(threading.Thread, Generic[T]):
    """A call in a thread that this process does not wait for when it ends."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="pds-wandb", daemon=True)
        self.call = call
        self.start()

    def run(self) -> None:
        self.result: T | None = None
        self.error: BaseException | None = None
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error

    def answer(self) -> T:
        """Return or raise as the call did; an exception that would end this process ends nothing."""
        if self.error is not None:
            raise self.error if isinstance(self.error, Exception) else RuntimeError(repr(self.error))
        return cast(T, self.result)


def _process() -> subprocess.Popen[bytes] | None:
    """The service, if this process started one."""
    from wandb.sdk import wandb_setup

    with contextlib.suppress(AttributeError):
        connection: Any = wandb_setup.singleton()._connection
        return cast("subprocess.Popen[bytes]", connection._proc._process)
    return None


def _teardown() -> None:
    import wandb

    wandb.teardown()


def end_at_exit() -> None:
    """End the service with this process, in time. W&B itself would wait for it without a limit."""
    # Hooks run in reverse order, so this one runs before the hook of the last started service.
    atexit.unregister(_end)
    atexit.register(_end)


def _end() -> None:
    service = _process()
    with contextlib.suppress(Exception):
        within(LAST_CALL, _teardown)
    if service is not None:
        try:
            service.wait(LAST_CALL)
        except subprocess.TimeoutExpired:
            service.kill()


def forget_ended() -> None:
    """Let the next run start another service if someone else ended this one."""
    service = _process()
    if service is not None and service.poll() is not None:
        _Asked(_teardown).join(LAST_CALL)
