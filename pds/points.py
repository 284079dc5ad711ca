"""The points of a sweep: what was asked for, and what became of each, in one small file a point."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pds.errors import MissingError, PDSError
from pds.files import write_json
from pds.runs import PLACE

STATES = ("waiting", "running", "done", "skipped", "failed")


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        overrides: what its command line gives, without what only says where and how fast.
        number: its place in the sweep, from 1.
        work: images x iterations, to tell the time left.
        state: "waiting", "running" (which is also what a killed one says), "done", "skipped" (something that only the user
            can provide is missing) or "failed".
        message: why it was skipped or failed.
        run: name of its run folder, beside `points/`; empty until it has one.
        seconds: it took; 0 until it ended.
        ended: seconds since the epoch; 0 until it ended.
    """

    overrides: tuple[str, ...]
    number: int = 0
    work: float = 0.0
    state: str = "waiting"
    message: str = ""
    run: str = ""
    seconds: float = 0.0
    ended: float = 0.0

    @classmethod
    def of(cls, overrides: Sequence[str], **values: Any) -> Point:
        """The point of a command line."""
        place = PLACE | {"sweep.name", "sweep.number", "sweep.points"}
        kept = [o for o in overrides if (key := o.lstrip("+~").partition("=")[0]) not in place and not key.startswith("hydra")]
        return cls(tuple(kept), **values)

    @property
    def digest(self) -> str:
        """8 digits of the hash of what it is."""
        return hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        return " ".join(self.overrides) or "the defaults"


@dataclass(frozen=True)
class Points:
    """The files `points/*.json` in the folder of a group of runs; each is written by its own point alone.

    Attributes:
        folder: the folder of the group.
    """

    folder: Path

    def read(self) -> list[Point]:
        """All points, in their order; none where there was no sweep."""
        points = []
        for path in (self.folder / "points").glob("*.json"):
            try:
                values = json.loads(path.read_text())
                points.append(Point(**{**values, "overrides": tuple(values["overrides"])}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise PDSError(f"{path} is damaged ({error}): delete it and run the sweep again") from None
        return sorted(points, key=lambda point: (point.number, point.overrides))

    def write(self, point: Point) -> None:
        """Say what has become of a point."""
        write_json(self.folder / "points" / f"{point.digest}.json", asdict(point))

    def plan(self, points: Sequence[Point]) -> None:
        """Announce a sweep; what an earlier one did of it stays done."""
        known = {point.digest: point for point in self.read()}
        for point in points:
            old = known.get(point.digest, point)
            ended = old if old.state == "done" else replace(point, state="waiting")
            self.write(replace(ended, number=point.number, work=point.work))

    @contextlib.contextmanager
    def running(self, point: Point) -> Iterator[Callable[[str], None]]:
        """Write what becomes of a point while the block runs it, and let errors pass; the block may name its run folder."""
        start = time.time()
        run = ""

        def write(state: str, message: str = "", **values: float) -> None:
            self.write(replace(point, state=state, message=message, run=run, **values))

        def started(name: str) -> None:
            nonlocal run
            run = name
            write("running")

        def ended(state: str, message: str = "") -> None:
            now = time.time()
            write(state, message, seconds=now - start, ended=now)

        write("running")
        try:
            yield started
        except MissingError as error:
            ended("skipped", str(error))
            raise
        except BaseException as error:
            ended("failed", str(error) if isinstance(error, (PDSError, OSError)) else f"{type(error).__name__}: {error}")
            raise
        ended("done")

    def time_left(self, since: float) -> float | None:
        """Seconds that the rest of the sweep takes at the pace of what ended after `since`; None before anything did."""
        points = self.read()
        ended = [point for point in points if point.state == "done" and point.ended > since]
        work = sum(point.work for point in ended)
        rest = sum(point.work for point in points if point.state in ("waiting", "running"))
        return (time.time() - since) * rest / work if work else None
