"""Points of a sweep: their names, their outcomes, the time left."""

import json

import pytest
from made_runs import write_run

from pds.errors import MissingError, PDSError
from pds.lab.points import Point, Points, sweep_name
from pds.lab.sweep import _succeeded


def test_a_point_is_what_it_asks_for_and_not_where_it_runs():
    here = Point.of(
        ["filter.alpha=2", "seed=1", "outputs=a", "device=cpu", "hydra.job.num=3", "sweep.number=2", "tracker=none"]
    )
    there = Point.of(["seed=1", "filter.alpha=2", "group=b", "+hydra.x=1"])
    assert here.overrides == ("filter.alpha=2", "seed=1")
    assert here.digest == there.digest != Point.of(["seed=2", "filter.alpha=2"]).digest


@pytest.mark.parametrize(
    "where",
    [
        "batch_size=8",
        "compile=true",
        "model.checkpoint=a.pth",
        "dataset.source.root=a",
        "metric.cache=a",
        "threads=1",
        "tracker.project=a",
    ],
)
def test_a_sweep_started_again_elsewhere_or_faster_finds_its_points(where):
    assert sweep_name(["seed"], ["images=8", where]) == sweep_name(["seed"], ["images=8"])
    assert Point.of(["seed=1", where]).digest == Point.of(["seed=1"]).digest
    # Swept over, two weights files are two points.
    assert Point.of(["seed=1", where], [where.partition("=")[0]]).overrides == ("seed=1", where)


def test_a_sweep_is_named_by_its_keys_and_by_what_it_holds_fixed():
    name = sweep_name(["filter.r", "filter.lam"], ["images=8", "outputs=x"])
    assert name.startswith("filter.lam+filter.r-")
    assert name == sweep_name(["filter.lam", "filter.r"], ["images=8"])
    assert name != sweep_name(["filter.lam", "filter.r"], ["images=9"])
    assert sweep_name([], []).startswith("sweep-")


def test_what_becomes_of_points(tmp_path):
    points = Points(tmp_path)
    asked = [Point.of([f"seed={seed}"], number=seed + 1, work=10.0) for seed in range(5)]
    points.plan(asked)
    assert [point.state for point in points.read()] == ["waiting"] * 5

    def fail(error):
        with pytest.raises(type(error)), points.running(points.planned([f"seed={fail.seed}"])) as started:
            started("run-folder", False)
            assert points.planned([f"seed={fail.seed}"]).run == "run-folder"
            raise error

    for fail.seed, error in enumerate([PDSError("too large"), MissingError("no weights"), ZeroDivisionError("by zero")]):
        fail(error)
    with points.running(points.planned(["seed=3"])) as started:
        started("other-folder", False)
    found = points.read()
    assert [(point.state, point.message) for point in found] == [
        ("failed", "too large"),
        ("skipped", "no weights"),
        ("failed", "ZeroDivisionError: by zero"),
        ("done", ""),
        ("waiting", ""),
    ]
    assert found[3].run == "other-folder"
    assert found[3].ended > 0

    # The same sweep again, one point longer and one shorter: all points wait until their runs are found done, and keep these.
    points.plan([*asked[:4], Point.of(["seed=9"], number=5)])
    again = {point.overrides[0]: (point.number, point.state, point.run) for point in points.read()}
    runs = {0: "run-folder", 1: "run-folder", 2: "run-folder", 3: "other-folder", 9: ""}
    assert again == {f"seed={seed}": (number, "waiting", run) for number, (seed, run) in enumerate(runs.items(), 1)}
    # Another sweep in the same folder leaves them alone.
    points.plan([Point.of(["width=1"], number=1, sweep="other")])
    assert len(points.read()) == 6


@pytest.mark.parametrize(
    ("error", "run"),
    [(SystemExit(0), "earlier"), (KeyboardInterrupt(), "earlier"), (MissingError("no weights"), ""), (PDSError("no"), "")],
)
def test_a_point_started_again_keeps_its_run_unless_it_fails_before_it_has_one(tmp_path, error, run):
    points = Points(tmp_path)
    points.write(Point.of(["seed=0"], state="done", run="earlier"))
    points.plan([Point.of(["seed=0"])])
    with pytest.raises(type(error)), points.running(points.planned(["seed=0"])):
        raise error
    assert [point.run for point in points.read()] == [run]


def test_a_sweep_succeeded_by_its_runs_where_another_process_made_its_points_wait_again(tmp_path):
    points, asked = Points(tmp_path), [Point.of([f"seed={seed}"]) for seed in range(2)]
    whole, stopped = write_run(tmp_path, 3.0), write_run(tmp_path, None, state="failed", message="no")
    for state in ("waiting", "running", "done"):
        points.write(Point.of(asked[0].overrides, state=state, run=whole.name))
        assert _succeeded(tmp_path, asked[:1])
    for state, run, succeeded in (
        ("waiting", stopped.name, False),
        ("waiting", "", False),
        ("failed", "", False),
        ("skipped", "", True),
    ):
        points.write(Point.of(asked[1].overrides, state=state, run=run))
        assert _succeeded(tmp_path, asked) == succeeded, (state, run)
        assert not _succeeded(tmp_path, asked[1:])


def test_a_point_that_another_sweep_over_its_keys_removed_comes_back_as_it_was(tmp_path):
    points, about = Points(tmp_path), {"number": 2, "sweep": "seed", "work": 8.0}
    first, second = Point.of(["seed=0"], number=1, sweep="seed", work=8.0), Point.of(["seed=1"], **about)
    points.plan([first, second])
    points.plan([Point.of(["seed=7"], number=1, sweep="seed")])
    assert second not in points.read()
    with points.running(points.planned(["seed=1"], **about)):
        pass
    (back,) = (point for point in points.read() if point.overrides == ("seed=1",))
    assert (back.number, back.sweep, back.work, back.state) == (2, "seed", 8.0, "done")


def test_points_come_in_the_order_of_the_sweep(tmp_path):
    points = Points(tmp_path)
    points.plan([Point.of(["seed=9"], number=1), Point.of(["seed=1"], number=2)])
    assert [point.number for point in points.read()] == [1, 2]


def test_the_time_left_goes_by_the_work_of_what_this_sweep_did(tmp_path, monkeypatch):
    points = Points(tmp_path)
    times = []
    monkeypatch.setattr("pds.lab.points.time.time", lambda: times.pop(0))
    early, first, second, third = (Point.of([f"seed={i}"], number=i, work=float(work)) for i, work in enumerate([99, 1, 2, 3]))
    times[:] = [10.0, 20.0]
    with points.running(early):
        pass
    points.plan([early, first, second, third])
    # What a killed sweep left in this group is no work of this one.
    points.plan([Point.of(["seed=9"], sweep="killed", work=50.0)])
    assert points.time_left("", since=100.0) is None
    # A point found done does not count for the pace.
    times[:] = [101.0, 102.0]
    with points.running(points.planned(early.overrides)) as started:
        started("folder", True)
    times[:] = [102.0, 104.0, 104.0]
    with points.running(points.planned(first.overrides)):
        pass
    # 1 of 6 took 4 seconds, 5 are left.
    assert points.time_left("", since=100.0) == pytest.approx(20.0)


def test_a_damaged_point_is_one_sentence(tmp_path):
    points = Points(tmp_path)
    points.plan([Point.of(["seed=0"])])
    (path,) = tmp_path.glob("points/*.json")
    path.write_text(json.dumps({"state": "done"}))
    whole, told = Point.of(["seed=1"]), []
    points.write(whole)
    assert points.read(lambda file, error: told.append((file, str(error)))) == [whole]
    assert told[0][0] == path and "delete it and run the sweep again" in told[0][1] and len(told) == 1
