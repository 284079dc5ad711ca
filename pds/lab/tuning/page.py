"""tuning.html: the trials of a search, its result, the certainty of the result, and the cost."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from pds.lab.report.page import or_message, write_html
from pds.lab.report.pictures import Picture, grid_of
from pds.lab.report.runs import Run
from pds.lab.tuning.recommendation import FILE, Answer, MeasuredSetting, sampling_command
from pds.lab.tuning.study import Study

if TYPE_CHECKING:
    from pds.lab.charts import Chart

log = logging.getLogger(__name__)


def write_page(folder: Path, about: Mapping[str, Any], studies: Mapping[int, Study], answers: Mapping[int, Answer]) -> Path:
    """Write the page of a search into the folder of its group.

    Args:
        folder: of the group.
        about: the search: its `command`, `metric` of the confirmation, `images` of a trial, and what it cost in `evaluations`
            and `seconds`.
        studies, answers: by budget.
    """
    page = {
        "title": f"Search for a sampler: {folder.name}",
        **about,
        "sampling": sampling_command(folder / FILE, next(iter(answers))),
        "answers": answers,
        "sides": {budget: _sides(answer) for budget, answer in answers.items()},
        "chart": _chart(studies),
        "pictures": {budget: _pictures(folder, answer) for budget, answer in answers.items()},
        "importance": {budget: _importance(study.study) for budget, study in studies.items()},
        "trials": {budget: study.ended for budget, study in studies.items()},
    }
    return write_html(folder / "tuning.html", "tuning/page.html", page)


def _sides(answer: Answer) -> list[tuple[str, MeasuredSetting]]:
    """The compared settings: the winner and the default, unless they are one."""
    others = [] if answer.default is None or answer.default.run == answer.winner.run else [("default", answer.default)]
    return [("winner", answer.winner), *others]


def _chart(studies: Mapping[int, Study]) -> Chart | None:
    """Distance against evaluations of all measured trials, and the front that none of them beats."""
    from pds.lab.charts import RAMP, SOFT, Column, Series, lines  # matplotlib takes a second to load

    best = (trial for study in studies.values() for trial in study.best)
    found = sorted((int(trial.user_attrs["nfe"]), trial.value) for trial in best if trial.value is not None)
    if not found:
        return None
    front = [pair for i, pair in enumerate(found) if all(pair[1] < value for _, value in found[:i])]
    styles = {"trials": {"color": SOFT, "marker": ".", "linestyle": "none"}, "Pareto front": {"color": RAMP[0], "marker": "o"}}
    series = [
        Series(name, [[nfe for nfe, _ in pairs]], [value for _, value in pairs], styles[name])
        for name, pairs in (("trials", found), ("Pareto front", front))
    ]
    column = Column("NFE (score evaluations)", sorted(studies))
    return lines("trials", "Distance against evaluations", "distance", [column], series)


def _pictures(folder: Path, answer: Answer) -> list[tuple[str, Picture | str]]:
    """First images of the winner and of the default from the same noise."""
    shown = list[tuple[str, Picture | str]]()
    for name, setting in _sides(answer):
        for seed, run in list(setting.runs.items())[:1]:
            picture = or_message(grid_of, Run(folder / run, "done"))
            shown += [(f"{name}, seed {seed}", picture)] if picture else []
    return shown


def _importance(study: optuna.Study) -> list[tuple[str, str]]:
    """Share of each option; none where too few trials were measured to tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that few trials have
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError) as error:
        log.debug("no importance: %s", error)
        return []
    return [(name, f"{share:.0%}") for name, share in found.items() if share >= 0.01]
