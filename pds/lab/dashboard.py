"""The Weights & Biases report of a group of runs, vanilla beside PDS (experiments/tools/dashboard.py)."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from pds.errors import PDSError
from pds.lab.report.runs import Run, Runs, grouped, read_runs
from pds.lab.report.settings import comparables
from pds.lab.report.table import format_table
from pds.lab.runs import MOVED
from pds.lab.terminal import show
from pds.lab.text import MISSING
from pds.lab.trackers.wandb import WandbTracker, has_api_key

try:
    import wandb_workspaces.reports.v2 as wr
except ImportError:
    wr = None  # type: ignore[assignment]

TRACKERS = ("tracker", "tracker.wandb", "tracker.wandb_offline")
"""The keys that a W&B tracker of a run may have: alone, or as one of several."""
WIDTH = 24  # columns of W&B's grid, which puts panels side by side while there is room


def dashboard(folder: Path, project: str | None = None, entity: str | None = None) -> str:
    """Print the command to upload missing runs, save a new report of the runs in `folder`, and return its address.

    None is the project or the entity (user or team) of the runs.

    Raises:
        PDSError: no run is finished, or W&B cannot be reached.
    """
    runs, beside = read_runs(folder).done, f"{folder / 'report.html'} compares the same runs without W&B"
    if not len(runs):
        raise PDSError(f"no run in {folder} is finished: there is nothing to compare yet")
    if wr is None:
        raise PDSError(f"wandb-workspaces is not installed: pip install wandb-workspaces ({beside})")
    project = project or _setting(runs, "project", "WANDB_PROJECT")
    entity = entity or _setting(runs, "entity", "WANDB_ENTITY")
    if project is None:
        raise PDSError(f"no run in {folder} names a W&B project: give --project")
    offline, untracked = not_uploaded(runs)
    if untracked:
        show(f"{len(untracked)} of {len(runs)} runs had no tracker: they are in the report's table, not in its charts")
    if offline:
        owner = ["--entity", entity] if entity else []
        command = shlex.join(["wandb", "sync", *owner, "--project", project, *map(str, offline)])
        show(f"{len(offline)} of {len(runs)} runs are not uploaded; the report shows them once you run:\n{command}")
    if not has_api_key():
        raise PDSError(f"no W&B account is configured: run `wandb login` ({beside})")
    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise PDSError("this W&B account has no default entity: give --entity")
        return comparison(runs, project, entity).save().url
    except (wandb.Error, WandbApiFailedError) as error:
        raise PDSError(f"W&B did not take the report: {str(error).rstrip('.')} ({beside})") from None


def _setting(runs: Runs, name: str, variable: str) -> str | None:
    """Return the option of the runs' W&B tracker, else the environment's value, in the order of `wandb.init`."""
    places = [(run.flat, place) for run in runs for place in TRACKERS]
    given = [flat.get(f"{place}.{name}") for flat, place in places if _of_wandb(flat.get(f"{place}._target_"))]
    told = {value for value in given if value}
    if len(told) > 1:
        raise PDSError(f"the runs do not agree on tracker.{name} ({', '.join(sorted(told))}): give --{name}")
    return next(iter(told), None) or os.environ.get(variable) or None


def _of_wandb(target: Any) -> bool:
    return MOVED.get(str(target), target) == f"{WandbTracker.__module__}.{WandbTracker.__qualname__}"


def not_uploaded(runs: Iterable[Run]) -> tuple[list[Path], list[Run]]:
    """Return the W&B folders of runs tracked offline and not uploaded since, and the runs that were not tracked.

    A run that was killed and resumed has a W&B folder for each attempt: the last one holds the result.
    """
    found = [(run, list((run.folder / "wandb").glob("*run-*-*"))) for run in runs]
    last = [max(attempts, key=lambda path: path.name.removeprefix("offline-")) for _, attempts in found if attempts]
    offline = [path for path in last if path.name.startswith("offline-") and not list(path.glob("*.wandb.synced"))]
    return offline, [run for run, attempts in found if not attempts]


def comparison(runs: Runs, project: str, entity: str) -> wr.Report:
    """Make the report of finished runs of one group without network; it is not saved yet.

    Charts ask W&B for the summary keys that a run logs (`pds.lab.experiment.mirror`). Each distance has panels of its own under
    its full name: a run with another image count or other features is absent there.
    """
    # An older run may have neither its configuration nor the group in its result.
    groups, names = (run.flat.get("group") or run.result.get("experiment") for run in runs), runs.metrics
    group = next(filter(None, groups), runs.runs[0].folder.parent.name)
    # W&B's filter language rewrites = < > even between quotes.
    escaped = re.sub(r"\W", lambda found: f"\\U{ord(found[0]):08x}", group)
    keys = list(dict.fromkeys(key for one in comparables(runs) for key in one.axes))
    present = sorted({"vanilla" if run.vanilla else "pds" for run in runs}, reverse=True)
    columns = [f"summary:{name}" for name in ("T", "NFE", "images", "seconds", *names)]
    # `value` follows the first part of a key.
    columns += [f"config:{'.value.'.join(key.split('.', 1))}" if "." in key else f"config:{key}.value" for key in keys]

    def grid(*panels: Any) -> wr.PanelGrid:
        # One run set per job type: W&B's grouping would average unlike points.
        alike = f"Metric('Group') == '{escaped}' and State == 'finished' and Metric('JobType') == "
        order, pinned = [wr.OrderBy("Name", ascending=True)], ["run:displayName"]
        table: dict[str, Any] = {"order": order, "pinned_columns": pinned, "visible_columns": columns, "lock_columns": True}
        runsets = [wr.Runset(name=job_type, filters=f"{alike}'{job_type}'", **table) for job_type in present]
        return wr.PanelGrid(runsets=runsets, panels=list(panels))

    # A row for each metric: its bars, then the metric against each cost.
    distances, place, most = list[Any](), {"w": WIDTH // 4, "h": 8}, len(runs)
    for name in names:
        distances.append(wr.BarPlot(name, [name], layout=wr.Layout(**place), max_runs_to_show=most, max_bars_to_show=most))
        for cost in ("NFE", "T", "seconds"):
            distances.append(wr.ScatterPlot(title=f"{name} by {cost}", x=cost, y=name, layout=wr.Layout(**place)))
    sampled = [
        wr.MediaBrowser(title="samples", media_keys=["samples"], num_columns=2, layout=wr.Layout(w=WIDTH, h=16)),
        wr.WeavePanelSummaryTable(table_name="sample_table", layout=wr.Layout(w=WIDTH, h=16)),
    ]
    axes: list[Any] = [wr.Metric("JobType"), *map(wr.Config, keys), *map(wr.SummaryMetric, ["NFE", *names])]
    parallel = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    different: list[Any] = [wr.ParallelCoordinatesPlot(columns=parallel, layout=wr.Layout(w=WIDTH, h=10))] if keys else []
    different.append(wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDTH, h=16)))
    blocks = [
        wr.MarkdownBlock(text=format_table(runs)),
        wr.P(
            "Lower is closer to the data. The name of a distance has the features and the number of images: only equal "
            "names may be compared. T is iterations, NFE is evaluations of the score network."
        ),
        *([wr.H2(text="Distance to the data"), grid(*distances)] if names else []),
        wr.H2(text="Samples"),
        wr.P("Runs of one seed start from the same noise: tiles and rows of the same index correspond."),
        grid(*sampled),
        wr.H2(text="What differs"),
        grid(*different),
        wr.H2(text="The runs"),
        *_provenance(runs),
    ]
    title, about = f"{group}: vanilla and PDS"[:128], f"{len(runs)} runs, made by experiments/tools/dashboard.py of PDS lab"
    return wr.Report(project=project, entity=entity, title=title, description=about, blocks=blocks, width="fluid")


def _provenance(runs: Runs) -> list[Any]:
    """Return commands, doubts, commits and versions, as far as the runs recorded them."""
    commands = "\n".join(dict.fromkeys(run.result["command"] for run in runs if run.result.get("command")))
    doubts = "\n".join(dict.fromkeys(f"- {run.label}: {doubt}" for run in runs for doubt in run.result.get("doubts", [])))
    made = []
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.result.get("versions", {}).items())
        commit, device = (run.result.get(key, MISSING) for key in ("commit", "device"))
        made.append((f"Commit {commit} on {device} ({versions or MISSING})", f"`{run.folder.name}`"))
    origins = [f"{title}: {', '.join(names)}" for title, names in grouped(made).items()]
    command = f"```bash\n{commands}\n```" if commands else ""
    return [wr.MarkdownBlock(text=text) for text in (command, doubts, *origins) if text]
