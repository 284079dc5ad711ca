"""Sweeps: swept keys are found from the configurations, and settings that must not be compared stay apart."""

import pytest
from made_runs import parametric, statistics, write_run

from pds.lab.report import read_runs
from pds.lab.report.settings import ALPHA, Best, T, comparables


def only_comparable(root):
    (comparable,) = comparables(read_runs(root))
    return comparable


def test_axes_are_what_was_chosen_not_what_follows_or_keeps_books(over_alpha_and_t):
    comparable = only_comparable(over_alpha_and_t)
    assert comparable.axes == [T, ALPHA]
    assert set(comparable.keys) == {T, ALPHA, "filter._target_", "filter.pixels"}


def test_seeds_are_one_setting(tmp_path):
    for seed, distance in enumerate((4.0, 5.0, 9.0)):
        write_run(tmp_path, distance, statistics(5.0, 50), seed=seed)
    write_run(tmp_path, 7.0)
    vanilla, pds = only_comparable(tmp_path).settings
    assert (pds.number, pds.spread, len(pds.runs)) == (6.0, pytest.approx(7**0.5), 3)
    assert (vanilla.number, vanilla.spread, len(vanilla.runs)) == (7.0, None, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"metric": "fid_made_up_512", "images": 512},
        {"model": "other net"},
        {"weights": "other weights"},
    ],
)
def test_what_may_not_be_compared_is_in_another_panel(tmp_path, other):
    for t in (25, 50):
        write_run(tmp_path, 100.0 / t, t=t)
        write_run(tmp_path, 900.0 / t, t=t, **other)
    found = comparables(read_runs(tmp_path))
    values = [[s.number for line in comparable.curves(T).lines for s in line.settings] for comparable in found]
    assert sorted(values) == [[4.0, 2.0], [36.0, 18.0]]


def test_a_line_is_all_that_differs_but_x(over_alpha_and_t):
    comparable = only_comparable(over_alpha_and_t)
    curves = comparable.curves(T)
    assert [line.label for line in curves.lines] == ["vanilla", "PDS α=1.25", "PDS α=2.5", "PDS α=5", "PDS α=10"]
    assert comparable.curves(T, most=2).lines[0].vanilla, "vanilla is never left out"
    assert [line.vanilla for line in curves.lines] == [True, False, False, False, False]
    assert [[s.values[T] for s in line.settings] for line in curves.lines] == [[25, 50, 100]] * 5
    by_alpha = comparable.curves(ALPHA)
    assert [line.label for line in by_alpha.lines] == ["PDS T=25", "PDS T=50", "PDS T=100"]
    assert [line.label for line in by_alpha.levels] == ["vanilla T=25", "vanilla T=50", "vanilla T=100"]
    assert len(comparable.curves(T, most=3).lines) == 3 and comparable.curves(T, most=3).left_out == 2


def test_a_vanilla_level_has_the_same_rest(tmp_path):
    for alpha in (2.5, 5.0):
        write_run(tmp_path, alpha, statistics(alpha, 50), 50)
    write_run(tmp_path, 30.0, t=50)
    write_run(tmp_path, 20.0, t=100)
    curves = only_comparable(tmp_path).curves(ALPHA)
    assert [level.label for level in curves.levels] == ["vanilla T=50"]


def test_samplers_are_lines_of_their_own(tmp_path):
    for t in (25, 50):
        for sampler, scale in (("ancestral", 1), ("reverse diffusion", 2)):
            write_run(tmp_path, 5.0, statistics(scale * t / 10, t), t, sampler=sampler)
    lines = only_comparable(tmp_path).curves(T).lines
    assert sorted(line.label for line in lines) == ["PDS α by T, ancestral", "PDS α by T, reverse diffusion"]
    assert [len(line.settings) for line in lines] == [2, 2]


def test_an_alpha_given_with_t_is_one_line(tmp_path):
    for t, alpha in ((80, 2.2), (166, 5.0)):
        write_run(tmp_path, 500 / t, statistics(alpha, t), t)
        write_run(tmp_path, 900 / t, t=t)
    comparable = only_comparable(tmp_path)
    assert comparable.axes == [T]
    assert [(line.label, len(line.settings)) for line in comparable.curves(T).lines] == [("vanilla", 2), ("PDS α by T", 2)]


def test_heat_map_has_every_cell(over_r_and_lam):
    write_run(over_r_and_lam, None, parametric(0.2, 1.6), seed=1, state="failed")  # the other seed of this cell is done
    (found,), left_out = only_comparable(over_r_and_lam).heat_maps("filter.r", "filter.lam")
    assert {place: setting.number for place, setting in found.cells.items()} == {
        (0.1, 0.9): 812.3,
        (0.1, 1.6): 9.5,
        (0.2, 0.9): 7.25,
        (0.2, 1.6): 6.5,
    }
    assert found.lost == {(0.3, 0.9): "failed", (0.1, 2.0): "failed", (0.2, 2.0): "skipped"}
    assert (found.lowest, left_out) == (6.5, 0)
    assert found.held == "T=50, ancestral"


def test_heat_maps_hold_a_third_key(tmp_path):
    for t in (25, 50, 100):
        for r in (0.1, 0.2):
            for lam in (0.9, 1.6):
                write_run(tmp_path, 100 / t + r * lam, parametric(r, lam), t)
    write_run(tmp_path, None, parametric(0.3, 0.9), 50, state="failed")
    write_run(tmp_path, None, parametric(0.3, 0.9), 100, state="failed", images=512)
    comparable = only_comparable(tmp_path)
    maps, _ = comparable.heat_maps("filter.r", "filter.lam")
    assert [(m.held, len(m.cells), len(m.lost)) for m in maps] == [
        ("T=25, ancestral", 4, 0),
        ("T=50, ancestral", 4, 1),
        ("T=100, ancestral", 4, 0),
    ]
    kept, left_out = comparable.heat_maps("filter.r", "filter.lam", most=2)
    assert [m.held for m in kept] == ["T=50, ancestral", "T=100, ancestral"] and left_out == 1


def test_curves_keep_both_kinds_and_lines_before_points(tmp_path):
    for number in range(7):
        for vanilla in (True, False):
            for t in (25, 50) if number else (25,):
                chosen = {"_target_": "other" if vanilla else "filter", "r": 0.1 * (number + 1)}
                write_run(tmp_path, (1.0 if vanilla else 100.0) + number, chosen, t, vanilla=vanilla)
    curves = only_comparable(tmp_path).curves(T)
    assert [(line.vanilla, len(line.settings)) for line in curves.lines] == [(True, 2)] * 5 + [(False, 2)] * 5
    assert curves.left_out == 4
    kept = [round(line.settings[0].values["filter.r"], 1) for line in curves.lines]
    assert kept == [0.2, 0.3, 0.4, 0.5, 0.6] * 2, "the lowest"


def test_no_heat_map_without_two_by_two_cells(tmp_path):
    for r, lam in ((0.1, 0.9), (0.1, 1.6), (0.2, 2.0)):
        write_run(tmp_path, 5.0, parametric(r, lam))
    assert only_comparable(tmp_path).heat_maps("filter.r", "filter.lam") == ([], 0)
    write_run(tmp_path, 5.0, parametric(0.2, 0.9))
    assert only_comparable(tmp_path).heat_maps("filter.r", "filter.lam") == ([], 0)
    write_run(tmp_path, 5.0, parametric(0.2, 1.6))
    assert len(only_comparable(tmp_path).heat_maps("filter.r", "filter.lam")[0]) == 1


def test_best_alpha_has_its_neighbours_or_is_a_bound(over_alpha_and_t):
    for alpha, t in ((5.0, 200), (10.0, 200), (20.0, 400)):
        write_run(over_alpha_and_t, 50 / alpha, statistics(alpha, t), t)
    comparable = only_comparable(over_alpha_and_t)
    ((_label, bests),) = comparable.best_alphas()
    assert bests == [Best(25, 1.25, 1.25, 2.5), Best(50, 2.5, 1.25, 5.0), Best(100, 5.0, 2.5, 10.0), Best(200, 10.0, 5.0, 10.0)]
    assert [best.inside for best in bests] == [False, True, True, False]
    assert comparable.references() == [(5.0, 100.0)]
