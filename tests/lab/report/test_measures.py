"""Measures side by side: the best and those level with it, for either direction, from seeds or from errors of one seed."""

import json

import numpy as np
import pytest
from made_runs import NOTHING, statistics, write_run

from pds.evaluation.measures import compared, jackknife_error
from pds.lab.report import format_table, read_runs, write_report
from pds.lab.report.table import side_by_side
from pds.lab.text import rounded, significant

REST = "mnist_classifier_native_n256"


def measured(root, filter=NOTHING, seed=0, errors=True, **measures):
    """A run with measures, each with an error of a hundredth."""
    folder = write_run(root, None, filter, seed=seed)
    result = json.loads((folder / "result.json").read_text())
    numbers = {f"{name}_{REST}": value for name, value in measures.items()}
    blocks = np.random.default_rng(filter is NOTHING).normal(0, 0.01 / 19**0.5, 20)
    left_out = {name: [value + float(b) for b in blocks] for name, value in numbers.items()} if errors else {}
    result |= {"metrics": numbers, "errors": dict.fromkeys(left_out, 0.01), "left_out": left_out}
    result["floor"] = {f"fid_{REST}": 1.25}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def kinds(found):
    return {label: [number.kind for number in numbers] for label, *numbers in found.table[1:]}


def test_the_best_and_what_is_level_with_it_by_the_errors_of_one_seed(tmp_path):
    measured(tmp_path, fid=4.0, precision=0.70, recall=0.30, memorisation_share=0.1)
    measured(tmp_path, statistics(5.0, 50), fid=4.02, precision=0.60, recall=0.31, memorisation_share=0.0)
    (table,) = side_by_side(read_runs(tmp_path))
    assert (table.name, table.table[0]) == (REST, ["setting", "fid ↓", "precision ↑", "recall ↑", "memorisation_share"])
    assert kinds(table) == {"vanilla": ["best", "best", "level", ""], "PDS α=5": ["level", "", "best", ""]}
    text = format_table(read_runs(tmp_path))
    assert "real data (floor)" in text and " 1.25 |" in text
    assert "**4.00±0.01**" in text and "4.02±0.01 ≈" in text and "fid_mnist_classifier_256" in text
    page = write_report(tmp_path).read_text()
    section = page[page.index("Measures side by side") :]
    assert '<td class="number best">4.00 <small>± 0.01</small></td>' in section and "0.30 <small>± 0.01</small> ≈" in section
    svg = (tmp_path / "figures" / f"precision-against-recall_{REST}.svg").read_text()
    assert ">recall (diversity)<" in svg and ">PDS α=5<" in svg
    head, *_ = (tmp_path / "summary.csv").read_text().splitlines()
    assert f"recall_{REST}" in head


def test_over_seeds_the_comparison_is_paired(tmp_path):
    for seed, fid in enumerate([10.0, 14.0, 18.0]):
        measured(tmp_path, seed=seed, errors=False, fid=fid, kid=0.1 * seed)
        measured(tmp_path, statistics(5.0, 50), seed=seed, errors=False, fid=fid + 1 + 0.1 * seed, kid=0.1 * seed + 0.01)
    (table,) = side_by_side(read_runs(tmp_path))
    assert kinds(table)["PDS α=5"] == ["", ""], "a spread of four hides no difference of one"
    assert "Level" not in write_report(tmp_path).read_text()


def test_without_errors_and_seeds_nothing_is_level(tmp_path):
    measured(tmp_path, errors=False, fid=4.0, kid=0.2)
    measured(tmp_path, statistics(5.0, 50), errors=False, fid=4.0001, kid=0.1)
    assert kinds(side_by_side(read_runs(tmp_path))[0]) == {"vanilla": ["best", ""], "PDS α=5": ["", "best"]}


def test_measures_of_one_setting_come_from_all_its_runs(tmp_path):
    measured(tmp_path, fid=4.0)
    measured(tmp_path, recall=0.3, kid=0.2)
    measured(tmp_path, statistics(5.0, 50), fid=5.0, kid=0.1)
    runs = read_runs(tmp_path)
    (table,) = side_by_side(runs)
    assert {label: sorted(row) for label, row in table.rows.items()} == {
        "vanilla": ["fid", "kid", "recall"],
        "PDS α=5": ["fid", "kid"],
    }
    assert [run.label for run in runs.ranked(f"kid_{REST}")] == ["PDS", "vanilla"], "also of a run that has a Fréchet distance"
    assert "0.10 ± 0.01" in format_table(runs).partition("\n\n")[0]


def test_only_equal_names_of_one_kind_stand_side_by_side(tmp_path):
    write_run(tmp_path, 3.0, metric="fid_mnist_classifier_256")
    measured(tmp_path, statistics(5.0, 50), fid=4.0, kid=0.1)
    measured(tmp_path, statistics(2.0, 50), fid=4.0, kid=0.1)
    other = measured(tmp_path, fid=4.0)
    config = (other / "config.yaml").read_text().replace("reference: r", "reference: another")
    (other / "config.yaml").write_text(config)
    (table,) = side_by_side(read_runs(tmp_path))
    assert sorted(table.rows) == ["PDS α=2", "PDS α=5", "vanilla"], "an old result is of the same name"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(23.812, 3.8, "24"), (23.812, 0.38, "23.8"), (23.812, 0.02, "23.8"), (0.1234, 0.04, "0.12"), (512.3, 91.0, "512")],
)
def test_no_digit_stands_below_the_first_of_an_error(value, error, text):
    assert significant(value, error) == text
    assert rounded([value, value], [error, None])[0] == text


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_comparison_is_paired_over_the_blocks_of_all_seeds(seeds):
    common, own = np.random.default_rng(0).normal(size=(2, seeds, 20))
    blocks = list(zip(5 + common + 0.01 * own, 4 + common, strict=True))
    found = compared([1.5] * seeds, [1.0] * seeds, blocks)
    errors = [0.01 * jackknife_error(of_seed) for of_seed in own]
    assert found.error == pytest.approx(np.square(errors).sum() ** 0.5 / seeds), "what blocks share is no error"
    assert found.difference == 0.5 and not found.level
    assert compared([1.001] * seeds, [1.0] * seeds, blocks).level
    from scipy.stats import t

    assert found.high - 0.5 == pytest.approx(found.error * t.ppf(0.975, 19 * seeds), rel=1e-3)


def test_the_blocks_of_seeds_give_the_interval_of_one_run_with_all_their_images():
    """The mean of 3 x 2,000 numbers and its interval do not depend on the seed that a number has."""
    values = np.random.default_rng(0).normal(0.1, 1, 6000)
    parts = values.reshape(3, 20, 100)
    left_out = [[(part.sum() - block.sum()) / 1900 for block in part] for part in parts]
    found = compared([part.mean() for part in parts], [0.0] * 3, [(one, np.zeros(20)) for one in left_out])
    assert found.difference == pytest.approx(values.mean())
    assert found.error == pytest.approx(1 / 6000**0.5, rel=0.15)
