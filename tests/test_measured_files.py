"""Statistics, references and noise moments that are read back: damaged or impossible ones are never used."""

import json
import random
import shutil

import numpy as np
import pytest

from pds.data.statistics import DatasetStatistics
from pds.errors import PDSError
from pds.evaluation import reference
from pds.evaluation.features import InceptionFeatures
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.reference import published_reference, read_reference, write_reference
from pds.files import ASSETS
from pds.moments import read_moments

NUMBERS = (np.nan, np.inf, -np.inf)


def reference_arrays(rng):
    features = rng.standard_normal((40, 6))
    statistics = FeatureStatistics.from_features(features)
    header = {"features_name": "f", "count": 40, "provenance": {"dataset": "d"}, "held_out": 5}
    return {
        "mean": statistics.mean,
        "covariance": statistics.covariance,
        "held_out": features[:5].astype(np.float16),
        "header": np.array(json.dumps(header)),
    }


def statistics_arrays(rng):
    x = rng.random((50, 2, 4, 6))
    power = np.square(np.abs(np.fft.fft2(x))).mean(0)
    moments = {"power": power, "mean": x.mean(0), "second_moment": np.square(x).mean(0)}
    facts = {"provenance": np.array(json.dumps({"dataset": "d", "images": 50}))}
    return {name: array.astype(np.float32) for name, array in moments.items()} | facts


def published_arrays(rng):
    root = rng.standard_normal((InceptionFeatures.dimension, 3))
    return {"mu": rng.standard_normal(InceptionFeatures.dimension), "sigma": root @ root.T}


def wrong(whole, text):
    """Wrong files, each one change away from the whole one."""
    for key, array in whole.items():
        yield {other: value for other, value in whole.items() if other != key}
        yield {other if other != key else f"{key}2": value for other, value in whole.items()}
        yield whole | {key: np.array({}, object)}
        if key == text:
            for string in ("", "x", "[]", "3", "null", "[" * 2000, '{"dataset": NaN}', '{"dataset": "\\ud800"}'):
                yield whole | {key: np.array(string)}
            facts = json.loads(str(array))
            for name in facts:
                if name not in ("held_out",):
                    yield whole | {key: np.array(json.dumps({k: v for k, v in facts.items() if k != name}))}
                for value in (None, True, -1, 1.5, "x", [], [1]):
                    if type(value) is not type(facts[name]) or value == -1:
                        yield whole | {key: np.array(json.dumps(facts | {name: value}))}
            yield whole | {key: np.array(str(array).encode())}
            continue
        for dtype in ("bool", "uint8", "int64", "complex64", "U4", "S4", ">f8"):
            yield whole | {key: array.astype(dtype)}
        yield from (
            whole | {key: other} for other in (array[:-1], array[..., None], array.ravel()[:0], np.concatenate([array] * 2))
        )
        for value in NUMBERS:
            changed = array.copy()
            changed.flat[array.size // 2] = value
            yield whole | {key: changed}


def refused(path, read, arrays):
    np.savez(path, **arrays)
    with pytest.raises(PDSError) as raised:
        pytest.fail(f"{ {key: array for key, array in arrays.items() if array.size < 40} } is {read(path)}")
    message = str(raised.value)
    assert path.name in message and message.isprintable() and len(message) < 600


def test_a_reference_is_whole_or_refused(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "x.npz"
    whole = reference_arrays(rng)
    np.savez(path, **whole)
    write_reference(path, read_reference(path))
    read = read_reference(path)
    assert np.array_equal(read.statistics.covariance, whole["covariance"]) and len(read.held_out) == 5
    cases = list(wrong(whole, "header"))
    skewed, negative = whole["covariance"].copy(), whole["covariance"].copy()
    skewed[0, 1] += 1
    negative[2, 2] = -1
    cases += [
        whole | {"covariance": skewed},
        whole | {"covariance": negative},
        whole | {"mean": whole["mean"].astype(np.float32)},
    ]
    assert len(cases) > 70
    for case in cases:
        refused(path, read_reference, case)


def test_statistics_are_whole_or_refused(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "x.npz"
    whole = statistics_arrays(rng)
    np.savez(path, **whole)
    assert DatasetStatistics.load(path).shape == (2, 4, 6)
    cases = list(wrong(whole, "provenance"))
    for key in ("power", "mean", "second_moment"):
        for value in (-1e-3, -1, 1e38, 577, 1.01):
            if (key, value) != ("power", 1.01):
                changed = whole[key].copy()
                changed.flat[rng.integers(changed.size)] = value
                cases.append(whole | {key: changed})
    cases += [whole | {"second_moment": whole["mean"] + 0.1}, whole | {"second_moment": whole["mean"] ** 2 - 0.01}]
    assert len(cases) > 80
    for case in cases:
        refused(path, DatasetStatistics.load, case)


def test_published_statistics_are_whole_or_refused(tmp_path, monkeypatch):
    rng, path = np.random.default_rng(0), tmp_path / "statistics" / "d_clean_train_32.npz"
    path.parent.mkdir()
    monkeypatch.setattr(InceptionFeatures, "dimension", 12)
    monkeypatch.setattr(reference, "fetch", lambda url, path, what: path)
    read = lambda path: published_reference("d", 32, "train", tmp_path)  # noqa: E731
    whole = published_arrays(rng)
    np.savez(path, **whole)
    assert np.array_equal(read(path).statistics.mean, whole["mu"])
    cases = list(wrong(whole, ""))
    assert len(cases) > 30
    for case in cases:
        refused(path, read, case)


def test_bytes_damaged_anywhere_never_give_other_numbers(tmp_path):
    draw, rng, path, count = random.Random(0), np.random.default_rng(0), tmp_path / "x.npz", 0
    for read, arrays in ((read_reference, reference_arrays(rng)), (DatasetStatistics.load, statistics_arrays(rng))):
        np.savez_compressed(path, **arrays)
        whole, bytes_ = read(path), path.read_bytes()
        numbers = lambda read: [read.statistics.mean, read.held_out] if hasattr(read, "statistics") else [read.power, read.mean]  # noqa: E731
        for _ in range(60):
            at = draw.randrange(len(bytes_))
            path.write_bytes(bytes_[:at] + bytes([bytes_[at] ^ 1 << draw.randrange(8)]) + bytes_[at + 1 :])
            try:
                found = read(path)
            except PDSError:
                count += 1
            else:
                assert all(np.array_equal(a, b) for a, b in zip(numbers(found), numbers(whole), strict=True))
    assert count > 60


def test_moments_are_whole_or_refused(tmp_path):
    path = tmp_path / "moments.json"
    shutil.copy(ASSETS / "mnist_ncsnpp_moments.json", path)
    whole = json.loads(path.read_text())
    assert read_moments(path).provenance == whole["provenance"]
    cases = [{key: value for key, value in whole.items() if key != name} for name in whole]
    cases += [whole | {key: value} for key in whole for value in (None, True, 3, -1.5, "x", [], [[]], ["1"], [None], [True])]
    cases += [whole | {"provenance": value} for value in ([], "x", None)]
    for key, values in (("sigmas", (0, -1, 1e31, "1", None, True, 10**30)), ("values", (-0.1, 1.1, "1", None, True, 2**80))):
        for value in values:
            for at in (0, len(whole[key]) // 2):
                changed = list(whole[key])
                changed[at] = value
                cases.append(whole | {key: changed})
    cases += [whole | {key: whole[key][:-1]} for key in ("sigmas", "values")]
    cases += [whole | {"sigmas": whole["sigmas"][::-1]}, whole | {"sigmas": [], "values": []}]
    cases += [whole | {"data_range": value} for value in ([0], [0, 1, 2], [1, 0], [0, 0], ["0", "1"], [0, None])]
    assert len(cases) > 60
    texts = [json.dumps(case) for case in cases]
    texts += [json.dumps(whole).replace(str(whole["values"][3]), word) for word in ("NaN", "Infinity", "1e999", "[" * 100_000)]
    texts += ["", "[]", "{", "\ufeff{}", "[" * 100_000, json.dumps(whole)[:-20]]
    for text in texts:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PDSError, match=r"moments\.json is not a file of noise moments of this project \(.*\): delete it"):
            pytest.fail(str(read_moments(path))[:200])


def test_what_is_not_finite_is_no_distance():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 5))
    whole = FeatureStatistics.from_features(features)
    for value in NUMBERS:
        for at in range(10):
            mean, covariance, damaged = whole.mean.copy(), whole.covariance.copy(), features.copy()
            mean[at % 5] = covariance[at % 5, at // 2] = damaged[at, at % 5] = value
            for make in (
                lambda mean=mean: FeatureStatistics(mean, whole.covariance, 30),
                lambda covariance=covariance: FeatureStatistics(whole.mean, covariance, 30),
                lambda damaged=damaged: FeatureStatistics.from_features(damaged),
            ):
                with pytest.raises(PDSError, match="not finite"):
                    make()
    huge = FeatureStatistics(np.full(5, 1e200), np.eye(5), 30)
    with pytest.raises(PDSError, match="not finite"), np.errstate(over="ignore"):
        frechet_distance(huge, whole)
