"""The points of a sweep, one small file each: its command line and its state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pds.errors import MissingError, PDSError
from pds.files import DamagedError, read_json, reading, write_json
from pds.lab.runs import says_where
from pds.options import Range, options

log = logging.getLogger(__name__)

Seconds = Annotated[float, Range(0)]


@options
class Point:
    """One point of a sweep.

    Attributes:
        overrides: its command line, without options of place and speed, unless these are swept over.
        number: its place in the sweep, from 1.
        sweep: name of the sweep.
        command: the command that started it.
        work: images x iterations, for the estimate of the time left.
        state: "waiting", "running" (also after a kill), "done", "skipped" (something that only the user can provide is missing)
            or "failed".
        message: why it was skipped or failed.
        run: name of its run folder, beside `points/`; empty until it has one. A point that is started again keeps the earlier
            one until it has its own, or fails.
        seconds: its duration, if it was not found done; 0 until it ended.
        ended: seconds since the epoch; 0 until it ended.
    """

    overrides: tuple[str, ...]
    number: Annotated[int, Range(0)] = 0
    sweep: str = ""
    command: str = ""
    work: Annotated[float, Range(0)] = 0.0
    state: Literal["waiting", "running", "done", "skipped", "failed"] = "waiting"
    message: str = ""
    run: str = ""
    seconds: Seconds = 0.0
    ended: Seconds = 0.0

    @classmethod
    def of(cls, overrides: Sequence[str], swept: Collection[str] = (), **values: Any) -> Point:
        """The point of a command line. Keys `swept` over tell it from others even if they only name a place, as two files
        do."""
        return cls(tuple(_what(overrides, swept)), **values)

    @property
    def digest(self) -> str:
        """8 digits of the hash of its command line."""
        return hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        return " ".join(self.overrides) or "the defaults"


def sweep_name(swept: Sequence[str], fixed: Sequence[str]) -> str:
    """Return a sweep's name: the keys swept over, and 8 digits of the hash of all other overrides.

    The values do not count: a sweep with one more value finds the points of the smaller one.
    """
    digest = hashlib.sha256(json.dumps([sorted(swept), sorted(_what(fixed))]).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', '+'.join(sorted(swept)))[:80] or 'sweep'}-{digest}"


def _what(overrides: Sequence[str], swept: Collection[str] = ()) -> list[str]:
    """Return the overrides that tell one point from another."""
    return [o for o in overrides if not says_where(o) or o.lstrip("+~").partition("=")[0] in swept]


@dataclass(frozen=True)
class Points:
    """The files `points/*.json` in the folder of a group of runs; each is written by its own point alone.

    Attributes:
        folder: the folder of the group.
    """

    folder: Path

    def read(self, damaged: Callable[[Path, DamagedError], None] = lambda path, error: log.warning("%s", error)) -> list[Point]:
        """All points, in their order; none without a sweep. `damaged` is called for each file that holds no point."""
        points = []
        for path in (self.folder / "points").glob("*.json"):
            try:
                what, fix = "a point of a sweep", "delete it and run the sweep again"
                with reading(path, what, fix):
                    values = read_json(path, {"overrides": list[str]}, what, fix)
                    point = Point(**{**values, "overrides": tuple(values["overrides"])})
                    if path.stem != point.digest:
                        raise ValueError("it is another point's")
                    points.append(point)
            except MissingError:  # another process announces its sweep at this moment
                continue
            except DamagedError as error:
                damaged(path, error)
        return sorted(points, key=lambda point: (point.number, point.overrides))

    def write(self, point: Point) -> None:
        """Write the state of a point."""
        write_json(self._file(point.digest), asdict(point))

    def _file(self, digest: str) -> Path:
        return self.folder / "points" / f"{digest}.json"

    def plan(self, points: Sequence[Point]) -> None:
        """Announce a sweep. All its points wait, also those that are done: only their runs know whether they are still done.

        Points keep their runs, so that a sweep that is started again and killed loses no number.
        """
        known = {point.digest: point for point in self.read()}
        for digest, point in known.items():
            if point.state in ("waiting", "running") and point.sweep in {other.sweep for other in points}:
                self._file(digest).unlink(missing_ok=True)  # another process may plan the same sweep
        for point in points:
            old = known.get(point.digest, point)
            self.write(replace(point, run=old.run, seconds=old.seconds, ended=old.ended))

    def planned(self, overrides: Sequence[str], swept: Collection[str] = (), **values: Any) -> Point:
        """The point of a command line, as it was announced; arguments as in `Point.of`.

        Its file is gone where another sweep over the same keys was announced. Then it has these values.
        """
        point = Point.of(overrides, swept, **values)
        return next((other for other in self.read() if other.digest == point.digest), point)

    @contextlib.contextmanager
    def running(self, point: Point) -> Iterator[Callable[[str, bool], None]]:
        """Write the state of a point while the block runs it, and let errors pass.

        The block gets a function. It calls this with the name of its run folder, and whether the run was done before.
        """
        start, found = time.time(), False
        now = replace(point, state="running", message="", run="")
        self.write(replace(now, run=point.run))

        def started(run: str, done: bool) -> None:
            nonlocal now, found
            now, found = replace(now, run=run), done
            self.write(now)

        def end(state: Literal["done", "skipped", "failed"], message: str = "") -> None:
            at = time.time()
            # A point that was found done does not count for the pace.
            pace: dict[str, Any] = {} if found else {"seconds": at - start, "ended": at}
            self.write(replace(now, state=state, message=message, **pace))

        try:
            yield started
        except MissingError as error:
            end("skipped", str(error))
            raise
        except KeyboardInterrupt:
            now = replace(now, run=now.run or point.run)
            end("failed", "stopped by hand")
            raise
        except Exception as error:  # not SystemExit: a queue takes the job back and starts it again
            end("failed", str(error) if isinstance(error, (PDSError, OSError)) else f"{type(error).__name__}: {error}")
            raise
        end("done")

    def time_left(self, sweep: str, since: float) -> float | None:
        """Seconds for the rest of a sweep, at the pace of its points that ended after `since`; None before any did."""
        points = [point for point in self.read() if point.sweep == sweep]
        ended = [point for point in points if point.state in ("done", "skipped", "failed") and point.ended > since]
        work = sum(point.work for point in ended)
        rest = sum(point.work for point in points if point.state in ("waiting", "running"))
        return (time.time() - since) * rest / work if work else None
