"""Run folders as a finished run leaves them, with made-up numbers."""

import json

import yaml

METRIC = "fid_made_up_256"
NOTHING = {"_target_": "NoFilter"}


def statistics(alpha, t):
    reference = {"alpha": 5.0, "iterations": 100}
    return {"_target_": "statistics_filter", "alpha": alpha, "pixels": "none", "iterations": t, "reference": reference}


def parametric(r, lam):
    return {"_target_": "ParametricFilter", "r": r, "lam": lam, "region": "outside_low"}


def write_run(root, distance, filter=NOTHING, t=50, seed=0, state="done", message="", config=None, **result):
    """One run folder of its own number; `distance` None is none, `result` replaces entries of result.json."""
    number = len(list(root.glob("*/config.yaml")))
    folder = root / f"run-{number}"
    folder.mkdir(parents=True)
    weights, metric = result.pop("weights", "w"), result.pop("metric", METRIC)
    made = {
        "name": folder.name,
        "label": "vanilla" if filter is NOTHING else "PDS",
        "vanilla": filter is NOTHING,
        "sampler": "ancestral",
        "iterations": t,
        "nfe": 2 * t,
        "images": 256,
        "seconds": t / 10,
        "seed": seed,
        "model": "net",
        "metrics": {} if distance is None else {metric: distance},
        "floor": {METRIC: 1.5},
        "command": f"python run.py {number}",
    } | result
    keys = {
        "model": {"_target_": "net", "width": 16},
        "filter": filter,
        "sampler": {"_target_": made["sampler"], "iterations": t, "end": 0.01 / t},
        "seed": seed,
        "images": made["images"],
        "shard_size": 4 + number,
        "outputs": f"out{number}",
        "tracker": {"run": number},
        "sweep": {"number": number},
        "published": {"iterations": 1000 + number},
        "fingerprint": {"weights": weights, "filters": str(filter), "reference": "r"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(keys if config is None else config), encoding="utf-8")
    (folder / "status.json").write_text(json.dumps({"state": state, "message": message}))
    if state == "done":
        (folder / "result.json").write_text(json.dumps(made))
    return folder


def edit(folder, **values):
    """Replace entries of a run's result."""
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
