"""The frame of every script: steady streams, log lines, failures in one sentence, the exit status of the work."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pds.errors import PDSError, out_of_memory
from pds.generation import Processes
from pds.lab import grammar, reference
from pds.lab.config import CONF
from pds.lab.logs import show_lines
from pds.lab.schema import register
from pds.lab.terminal import EXPERIMENTS, show, steady_streams

log = logging.getLogger(__name__)

Work = Callable[[list[str]], object]
"""The work of a script, given the arguments of its command line."""

STOPPED = 130  # the status that shells give after Ctrl-C

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room and run the same command again"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that you may write to, as in outputs=FOLDER"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "choose another folder, as in outputs=FOLDER"),
    errno.ENOENT: "check the path",
}


class Failed(Exception):
    """The work failed and has reported the reason."""


def start(work: Work) -> NoReturn:
    """Run a script: do its work and leave with the exit status of the work."""
    steady_streams()
    threading.excepthook = tell_of_thread
    sys.exit(status(work, sys.argv[1:]))


def documented(work: Work, text: str | None) -> Work:
    """The work of a script without options, which answers --help by a text."""

    def answered(arguments: list[str]) -> None:
        if {"--help", "-h"} & {*arguments}:
            show((text or "").strip())
        else:
            work(arguments)

    return answered


def status(work: Work, arguments: list[str]) -> int:
    """The exit status of some work; its failure is reported."""
    show_lines()
    try:
        work(arguments)
    except Failed:
        return 1
    except KeyboardInterrupt:
        log.error("error: stopped by hand; the same command goes on from here")
        return STOPPED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        tell(error, grammar.sentence(error) or sentence(error))
        return 1
    return 0


def sentence(error: Exception) -> str | None:
    """Return the meaning of a failure to the user, and its fix; None for a defect of this project, which needs its
    traceback."""
    if isinstance(error, PDSError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        remedy = REMEDIES.get(error.errno or 0)
        return f"{place}{error.strerror}{f': {remedy}' if remedy else ''}"
    if isinstance(error, OSError):
        return str(error)
    if out_of_memory(error):
        return "there is too little memory for it: give a smaller batch_size, or a smaller model, as by model.width"
    return None


def tell(error: Exception, said: str | None) -> None:
    """Report an error, with the traceback if there is no sentence for it."""
    if said is None:
        log.error("error: %s: %s", type(error).__name__, error, exc_info=error)
    else:
        log.error("error: %s", said)


def tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Report the error that ended a thread, such as a tracker's writer on a full disk; the work goes on."""
    if isinstance(failed.exc_value, Exception):
        tell(failed.exc_value, sentence(failed.exc_value))


def leads() -> bool:
    """Whether this process is alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def prepare() -> None:
    """Register our schema and our sweeper with Hydra, whatever folder the script was started from."""
    register()
    if str(EXPERIMENTS) not in sys.path:
        sys.path.append(str(EXPERIMENTS))


def configured(name: str, job: Callable[[DictConfig], object]) -> Work:
    """A job on the configuration that the arguments compose, or one for each point of a sweep.

    Args:
        name: name of its file in conf/.
        job: a function that can be imported by name, because launchers send it to other processes.
    """

    def work(arguments: list[str]) -> None:
        # First, so that every process fails. Later only the first process reports, and with a wrong RANK there may be none.
        Processes.check()
        prepare()
        arguments = with_trackers([grammar.typed(argument) for argument in arguments])
        if ours := next((argument for argument in arguments if argument.lstrip("+~").startswith("sweep.")), None):
            raise PDSError(f"{ours} cannot be given: a sweep sets it, -m starts one")
        for argument in arguments:
            grammar.require_choice(argument, CONF)
        if told := reference.help_text(name, arguments):
            show(told)
            return
        # Hydra then raises errors instead of printing them, and `status` reports them.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        version.setbase("1.3")
        parser, task = one_sentence(get_args_parser()), _Task(name, job)
        _run_hydra(parser.parse_intermixed_args(arguments), parser, task, str(CONF), name)
        if task.failed:
            raise Failed

    return work


def with_trackers(arguments: list[str]) -> list[str]:
    """The arguments with tracker=[a,b] rewritten for Hydra: a node of several trackers, each composed into it."""
    made: list[str] = []
    for argument in arguments:
        listed = re.fullmatch(r"tracker=\[(.*)\]", argument)
        names = dict.fromkeys(name.strip() for name in listed[1].split(",")) if listed else {}
        if "none" in names:
            raise PDSError(f"{argument} has none beside others: give tracker=none, or leave none out")
        if "" in names:
            raise PDSError(f"{argument} names no tracker: give names, as in tracker=[tensorboard,mlflow], or tracker=none")
        made += ["tracker=several", *(f"+tracker@tracker.{name}={name}" for name in names)] if listed else [argument]
    return made


def one_sentence(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, which refuses arguments by a `PDSError`."""

    def refuse(message: str) -> NoReturn:
        raise PDSError(f"the command line cannot be used ({message}): --help says what it takes")

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def given_overrides() -> list[str]:
    """The overrides of this job as they were given; Hydra would resolve the ${...} in them."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(given, list)  # for the type checker: overrides are a list
    return given


class _Task:
    """A job as Hydra calls it: a failure is reported at once, and the other jobs of a sweep go on."""

    def __init__(self, name: str, job: Callable[[DictConfig], object]) -> None:
        self.__module__ = name  # name of the program for Hydra
        self.job = job
        self.failed = False

    def __call__(self, cfg: DictConfig) -> None:
        show_lines()
        try:
            self.job(cfg)
        except Failed:
            self.failed = True
        except Exception as error:
            said = sentence(error)
            tell(error, said)
            # torchrun ends all processes as soon as one fails. So the leader, which writes, answers for the others.
            self.failed |= leads() or said is None
