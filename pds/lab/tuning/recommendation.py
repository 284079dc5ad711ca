"""recommendation.yaml: the results of a search, a line a budget, and their use by run.py."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from pds.errors import PDSError, escaped
from pds.evaluation.measures import BLOCKS, Comparison, compared
from pds.files import atomic_path, read_yaml, user_path
from pds.lab import grammar
from pds.lab.cli import Work
from pds.lab.runs import says_where
from pds.lab.tables import key
from pds.lab.terminal import command_line, script
from pds.options import Range, options

log = logging.getLogger(__name__)

FILE = "recommendation.yaml"


@options
class MeasuredSetting:
    """A setting and its distances on noise that no trial saw.

    Attributes:
        run: its overrides, beside those of the whole search.
        nfe: evaluations an image.
        distances: distances by seed.
        runs: names of the run folders, by seed.
        left_out: distances without each block of images, by seed; empty where there are too few images.
    """

    run: Sequence[str]
    nfe: Annotated[int, Range(0)]
    distances: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def spread(self) -> str:
        """Mean and standard deviation over seeds."""
        values = list(self.distances.values())
        if len(values) < 2:
            return "".join(f"{value:.4g}" for value in values) or "–"
        return f"{mean(values):.4g} ± {stdev(values):.2g}"


@dataclass(frozen=True)
class Answer:
    """The result of a search for one budget.

    Attributes:
        winner: the leading trial.
        default: the untuned default; None if it cannot sample with this budget.
        why: the reason why the winner is not confirmed; empty if it is confirmed.
    """

    winner: MeasuredSetting
    default: MeasuredSetting | None
    why: str = ""

    @property
    def tuned(self) -> bool:
        """Whether the winner is recommended: it is better, or level and cheaper, or there is nothing beside it."""
        if self.default is None or self.default.run == self.winner.run:
            return True
        found = self._compared
        if found is None:
            return not self.default.distances
        return self.winner.nfe < self.default.nfe if found.level else found.high < 0

    @property
    def recommended(self) -> MeasuredSetting:
        """The setting that is recommended."""
        return self.winner if self.tuned or self.default is None else self.default

    @property
    def _compared(self) -> Comparison | None:
        """The winner and the default on equal noise, if there are two seeds or more of both."""
        if self.default is None:
            return None
        seeds = [seed for seed in self.winner.distances if seed in self.default.distances]
        if len(seeds) < 2:
            return None
        blocks = [(self.winner.left_out.get(seed, ()), self.default.left_out.get(seed, ())) for seed in seeds]
        known = all(len(of_one) == BLOCKS for pair in blocks for of_one in pair)
        winner, default = ([one.distances[seed] for seed in seeds] for one in (self.winner, self.default))
        return compared(winner, default, blocks if known else None)

    @property
    def verdict(self) -> str:
        """The certainty of the result, in a sentence."""
        if self.why:
            return f"not confirmed: {self.why}"
        if self.default is None:
            return "confirmed alone: the default cannot sample with this budget"
        if self.default.run == self.winner.run:
            return "no trial is better than the default"
        found = self._compared
        if found is None:
            return "not confirmed: too few seeds were measured"
        told = f"{found.difference:+.3g} beside the default, 95% interval {found.low:.3g} to {found.high:.3g}"
        if found.level:
            return f"level ({told}): the {'cheaper' if self.winner.nfe != self.default.nfe else 'simpler'} one is recommended"
        return f"{'better' if found.high < 0 else 'worse on new noise'} ({told})"


def from_anywhere(override: str) -> str:
    """The override of an option; the path of a file in it is whole, because run.py may be started in another folder.

    So is the path of a folder, where an option takes nothing else.
    """
    name, _, value = override.partition("=")
    file, colon, part = value.strip("'\"").partition(":")
    there = Path(file).is_file() or (says_where(override) and not colon and Path(file).is_dir())
    if not file or not there or not ("." in name or name.lstrip("+") == "labels"):
        return override
    whole = f"{name}={Path(file).resolve()}{colon}{part}"
    return shlex.split(grammar.quoted(whole) or whole)[0]


def earlier(folder: Path, common: Sequence[str], metric: str | None) -> dict[str, Any]:
    """The lines of recommendation.yaml by budget, from earlier searches of this group.

    Raises:
        PDSError: they are of other runs or of another metric, or the file is damaged.
    """
    file, fix = folder / FILE, "give another group, or delete it"
    if not file.exists():
        return {}
    found = read_yaml(file, {"common": list[str], "budgets": dict}, "a recommendation of tune.py", fix)
    if found.get("metric") != metric or {*found["common"]} != {*common}:
        was = found.get("metric") or "a first guess"
        raise PDSError(f"{file} holds answers of another search, by {was}: {fix}")
    budgets = {str(budget): line for budget, line in found["budgets"].items()}
    if odd := next((budget for budget in budgets if not budget.isdecimal()), None):
        raise PDSError(f"{file} has budget={escaped(odd, 80)}, which is no whole number: {fix}")
    return budgets


def _line(setting: MeasuredSetting) -> dict[str, Any]:
    """A setting in the file; the runs' own results have the distances without each block."""
    return {name: value for name, value in asdict(setting).items() if name != "left_out"}


def sampling_command(file: Path, budget: int) -> str:
    """The command that samples with the recommendation for a budget."""
    return command_line([script("run.py"), f"recommendation={file}", f"budget={budget}"])


def write(folder: Path, common: Sequence[str], metric: str | None, answers: Mapping[int, Answer], command: str) -> Path:
    """Write recommendation.yaml: one line of JSON a budget, with those of earlier searches for other budgets."""
    told = earlier(folder, common, metric)
    lines = [f"# {command}", f"# {sampling_command(folder / FILE, next(iter(answers)))}", f"metric: {json.dumps(metric)}"]
    lines += [f"common: {json.dumps(list(common))}", "budgets:"]
    for budget, answer in answers.items():
        told[str(budget)] = {
            "run": list(answer.recommended.run),
            "verdict": answer.verdict,
            "winner": _line(answer.winner),
            "default": answer.default and _line(answer.default),
        }
    lines += [f'  "{budget}": {json.dumps(told[budget], ensure_ascii=False)}' for budget in sorted(told, key=int)]
    with atomic_path(folder / FILE) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / FILE


def overrides_of(path: Path, budget: str) -> list[str]:
    """The overrides that a recommendation gives for a budget.

    Raises:
        PDSError: there is no such file, it is damaged, or it has no such budget.
    """
    what, fix = "a recommendation of tune.py", "run experiments/tune.py again"
    found = read_yaml(path, {"common": list[str], "budgets": dict}, what, fix)
    if not found["budgets"]:
        raise PDSError(f"{path} has no budgets: {fix}")
    if budget not in found["budgets"]:
        known = ", ".join(map(str, found["budgets"]))
        raise PDSError(f"budget={budget} is not in {path}: choose one of {known}, or search for it with experiments/tune.py")
    run = found["budgets"][budget].get("run") if isinstance(found["budgets"][budget], dict) else None
    if not isinstance(run, list) or not all(isinstance(override, str) for override in run):
        raise PDSError(f"{path} has no overrides for budget={budget}: {fix}")
    return [*found["common"], *run]


def _meaning(override: str) -> tuple[str, str]:
    """Key and value, with quotes or without."""
    return key(override), str(OverridesParser.create().parse_override(override).value())


def recommended(work: Work) -> Work:
    """The work of run.py, with recommendation=PATH budget=N replaced by their overrides."""

    def expanded(arguments: list[str]) -> None:
        given = {key(a): a.partition("=")[2] for a in arguments if key(a) in ("recommendation", "budget")}
        if not given:
            work(arguments)
            return
        if len(given) < 2:
            raise PDSError("recommendation=PATH and budget=N belong together: give both")
        rest = [argument for argument in arguments if key(argument) not in given]
        own = {key(argument) for argument in rest}
        found = overrides_of(user_path(given["recommendation"]), given["budget"])
        # Another choice of a group leaves nothing of the recommended one.
        kept = [override for override in found if not own & {key(override), re.split("[./]", key(override))[0]}]
        same = set(map(_meaning, [*kept, *(override for override in rest if "=" in override)]))
        replaced = [o for o in found if _meaning(o) not in same and not says_where(o) and not key(o).startswith("metric")]
        if replaced:
            told = "the command replaces a part of the recommendation, which was measured as a whole: %s"
            log.warning(told, " ".join(replaced))
        work([*kept, *rest])

    return expanded
