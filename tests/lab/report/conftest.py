"""Two made-up sweeps."""

import numpy as np
import pytest
from made_runs import parametric, statistics, write_run

from pds.lab.points import Point, Points


@pytest.fixture
def over_alpha_and_t(tmp_path):
    """vanilla, and α x T with its best at α = T / 20. That is inside the grid at T = 50 and 100, at its edge at 25."""
    for t in (25, 50, 100):
        write_run(tmp_path, 30.0, t=t)
        for alpha in (1.25, 2.5, 5.0, 10.0):
            write_run(tmp_path, 4 + abs(np.log(alpha * 20 / t)), statistics(alpha, t), t)
    return tmp_path


@pytest.fixture
def over_r_and_lam(tmp_path):
    """r x λ with a cell that failed in its folder, one that failed and one that was skipped without a folder."""
    for r, lam, distance in [(0.1, 0.9, 812.3), (0.1, 1.6, 9.5), (0.2, 0.9, 7.25), (0.2, 1.6, 6.5)]:
        write_run(tmp_path, distance, parametric(r, lam))
    ran = write_run(tmp_path, None, parametric(0.3, 0.9), state="failed", message="no <space> left")
    points = Points(tmp_path)
    points.write(Point(("filter.r=0.3", "filter.lam=0.9"), 1, state="failed", message="no <space> left", run=ran.name))
    points.write(Point(("filter.r=0.1", "filter.lam=2.0"), 2, state="failed", message="lam is too large"))
    points.write(Point(("filter.r=0.2", "filter.lam=2.0"), 3, state="skipped", message="weights are missing"))
    points.write(Point(("filter.r=0.4",), 4, state="waiting"))
    points.write(Point(("filter.r=0.5",), 5, state="running"))
    return tmp_path
