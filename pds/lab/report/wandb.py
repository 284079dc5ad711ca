"""Make the Weights & Biases report of a group of runs, vanilla beside PDS.

python experiments/tools/dashboard.py outputs/quickstart

It needs an account (`wandb login`); outputs/<group>/report.html is the same comparison without one.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from pds.errors import PDSError
from pds.lab.report.runs import Run, Runs, read_runs
from pds.lab.report.settings import panels
from pds.lab.report.table import format_table
from pds.lab.terminal import show
from pds.lab.tracking import has_api_key

try:
    import wandb_workspaces.reports.v2 as wr
except ImportError:
    wr = None

JOB_TYPES = ("vanilla", "pds")
WIDTH = 24  # columns of W&B's grid, which puts panels side by side while there is room


def main(arguments: list[str]) -> None:
    """Print how to upload what W&B does not have, then make the report and print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of a group: outputs/<group>")
    parser.add_argument("--project", help="W&B project (default: that of the runs)")
    parser.add_argument("--entity", help="W&B user or team (default: that of the runs)")
    options = parser.parse_args(arguments)
    show(f"dashboard  {dashboard(options.folder, options.project, options.entity)}")


def dashboard(folder: Path, project: str | None, entity: str | None) -> str:
    """Save the report of the runs in `folder`, which changes nothing there; every call makes a new one.

    Returns:
        Its address.

    Raises:
        PDSError: no run is finished, or W&B cannot be reached.
    """
    runs = read_runs(folder).done
    if not len(runs):
        raise PDSError(f"no run in {folder} is finished: there is nothing to compare yet")
    if wr is None:
        raise PDSError(f"wandb-workspaces is not installed: pip install wandb-workspaces ({_offline(folder)})")
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
        raise PDSError(f"no W&B account is configured: run `wandb login` ({_offline(folder)})")
    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise PDSError("this W&B account has no default entity: give --entity")
        return comparison(runs, project, entity).save().url
    except (wandb.Error, WandbApiFailedError) as error:
        raise PDSError(f"W&B did not take the report: {str(error).rstrip('.')} ({_offline(folder)})") from None


def _offline(folder: Path) -> str:
    return f"{folder / 'report.html'} compares the same runs without W&B"


def _setting(runs: Runs, name: str, variable: str) -> str | None:
    """Return what the runs' tracker was told, else the environment's value, in the order of `wandb.init`."""
    told = {value for run in runs if (value := run.flat.get(f"tracker.{name}"))}
    if len(told) > 1:
        raise PDSError(f"the runs do not agree on tracker.{name} ({', '.join(sorted(told))}): give --{name}")
    return next(iter(told), None) or os.environ.get(variable) or None


def not_uploaded(runs: Iterable[Run]) -> tuple[list[Path], list[Run]]:
    """Return the W&B folders of runs tracked offline and not uploaded since, and the runs that were not tracked.

    A run that was killed and resumed has a W&B folder for each attempt: the last one holds the result.
    """
    offline, untracked = [], []
    for run in runs:
        attempts = sorted((run.folder / "wandb").glob("*run-*-*"), key=lambda path: path.name.removeprefix("offline-"))
        if not attempts:
            untracked.append(run)
        elif attempts[-1].name.startswith("offline-") and not list(attempts[-1].glob("*.wandb.synced")):
            offline.append(attempts[-1])
    return offline, untracked


def comparison(runs: Runs, project: str, entity: str) -> wr.Report:
    """Make the report of finished runs of one group without network; it is not saved yet.

    Charts ask W&B for the summary keys that a run logs (`pds.lab.experiment.mirror`). Each distance has panels of its own under
    its full name: a run with another image count or other features is absent there.
    """
    group, names = runs.runs[0].flat["group"], runs.metrics
    keys = list(dict.fromkeys(key for panel in panels(runs) for key in panel.axes))
    present = [job_type for job_type in JOB_TYPES if any(run.vanilla == (job_type == "vanilla") for run in runs)]
    columns = ["summary:T", "summary:NFE", "summary:images", "summary:seconds", *(f"summary:{name}" for name in names)]

    def grid(*panels: wr.Panel) -> wr.PanelGrid:
        # One run set per job type: W&B's grouping would average unlike points.
        runsets = [
            wr.Runset(
                name=job_type,
                filters=f"Metric('Group') == '{_escaped(group)}' and Metric('JobType') == '{job_type}' and State == 'finished'",
                order=[wr.OrderBy("Name", ascending=True)],
                pinned_columns=["run:displayName"],
                visible_columns=[*columns, *(_column(key) for key in keys)],
                lock_columns=True,
            )
            for job_type in present
        ]
        return wr.PanelGrid(runsets=runsets, panels=list(panels))

    distances = [panel for name in names for panel in _distance_panels(name, len(runs))]
    sampled = [
        wr.MediaBrowser(title="samples", media_keys=["samples"], num_columns=2, layout=wr.Layout(w=WIDTH, h=16)),
        wr.WeavePanelSummaryTable(table_name="sample_table", layout=wr.Layout(w=WIDTH, h=16)),
    ]
    different: list[wr.Panel] = []
    if keys:
        axes = [wr.Metric("JobType"), *map(wr.Config, keys), *map(wr.SummaryMetric, ["NFE", *names])]
        parallel = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
        different.append(wr.ParallelCoordinatesPlot(columns=parallel, layout=wr.Layout(w=WIDTH, h=10)))
    different.append(wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDTH, h=16)))
    blocks = [
        wr.MarkdownBlock(text=format_table(runs)),
        wr.P(
            "Lower is closer to the data. The name of a distance says which features and how many images: only equal "
            "names may be compared. T is iterations, NFE is evaluations of the score network."
        ),
        *([wr.H2(text="Distance to the data"), grid(*distances)] if names else []),
        wr.H2(text="Samples"),
        wr.P("Runs of one seed start from the same noise: tiles and rows of the same index correspond."),
        grid(*sampled),
        wr.H2(text="What differs"),
        grid(*different),
        wr.H2(text="What was run"),
        *_provenance(runs),
    ]
    return wr.Report(
        project=project,
        entity=entity,
        title=f"{group}: vanilla and PDS"[:128],
        description=f"{len(runs)} runs, made by experiments/tools/dashboard.py of PDS lab",
        blocks=blocks,
        width="fluid",
    )


def _escaped(text: str) -> str:
    """Escape `text` for quotes of W&B's filter language, which rewrites = < > even there."""
    return re.sub(r"\W", lambda found: f"\\U{ord(found[0]):08x}", text)


def _column(key: str) -> str:
    """Return the name of a configuration key in W&B's tables, where `value` follows its first part."""
    first, *rest = key.split(".")
    return ".".join([f"config:{first}", "value", *rest])


def _distance_panels(name: str, count: int) -> list[wr.Panel]:
    """Return a row of panels for one metric of `count` runs: its bars, then the metric against each cost."""
    size = {"w": WIDTH // 4, "h": 8}
    bars = wr.BarPlot(title=name, metrics=[name], max_runs_to_show=count, max_bars_to_show=count, layout=wr.Layout(**size))
    scatters = [
        wr.ScatterPlot(title=f"{name} by {cost}", x=cost, y=name, layout=wr.Layout(**size)) for cost in ("NFE", "T", "seconds")
    ]
    return [bars, *scatters]


def _provenance(runs: Runs) -> list[wr.Block]:
    """Return commands, doubts, commits and versions, as the runs recorded them."""
    commands = "\n".join(dict.fromkeys(run.result["command"] for run in runs))
    blocks: list[wr.Block] = [wr.MarkdownBlock(text=f"```bash\n{commands}\n```")]
    doubts = dict.fromkeys(f"- {run.label}: {doubt}" for run in runs for doubt in run.result.get("doubts", []))
    if doubts:
        blocks.append(wr.MarkdownBlock(text="\n".join(doubts)))
    for title in dict.fromkeys(_made_by(run) for run in runs):
        labels = [f"`{run.folder.name}`" for run in runs if _made_by(run) == title]
        blocks.append(wr.MarkdownBlock(text=f"{title}: {', '.join(labels)}"))
    return blocks


def _made_by(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.result["versions"].items())
    return f"Commit {run.result['commit']} on {run.result['device']} ({versions})"
