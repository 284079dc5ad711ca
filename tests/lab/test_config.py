"""From configuration nodes to objects: every refusal of a value names its key; our own defects stay tracebacks."""

import logging
import random
import sys

import pytest
from omegaconf import OmegaConf
from test_configurations import composed

from pds.errors import OptionError, PDSError
from pds.lab.config import KINDS, build, keyed
from pds.lab.experiment import Experiment, prepared
from pds.lab.logs import traced
from pds.options import Count, options

RAISED = [
    TypeError,
    ValueError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    AttributeError,
    KeyError,
    AssertionError,
]


@options
class Part:
    steps: Count = 1
    raises: int | None = None

    def __post_init__(self):
        if self.raises is not None:
            raise RAISED[self.raises]("no such thing")


@options
class Whole:
    part: Part
    size: Count = 1


def late(device, /, part: Part, size: int = 1):
    raise OptionError("steps", f"must be less on {device}")


def tree(part=(), target="Whole", **whole):
    def node(name, **values):
        return {"_target_": f"{__name__}.{name}", **values}

    return OmegaConf.create(
        {"outer": {"thing": node(target, part=node("Part", **{"steps": 1, **dict(part)}), **whole)}}
    ).outer.thing


def test_a_refused_option_is_named_by_its_key_however_deep():
    assert build(tree()).part.steps == 1
    with pytest.raises(OptionError, match=r"^outer\.thing\.size must be a whole number from 1 to 1000000, got 'x'$"):
        build(tree(size="x"))
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps must be a whole number from 1 to 1000000, got 0$"):
        build(tree({"steps": 0}))
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps must be less on cpu$"):
        build(tree(target="late"), "cpu")
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps is late$"), keyed(tree()), keyed(tree()):
        raise OptionError("steps", "is late")


@pytest.mark.parametrize("kind", range(len(RAISED)))
def test_what_python_or_torch_refuse_about_values_is_a_sentence_and_a_defect_is_not(kind):
    refused, about_values = RAISED[kind], kind < 6
    said = (
        f"^outer.thing.part, a {__name__}.Part, cannot be made of these values: {refused.__name__}: no such thing$"
        if about_values
        else "^"
    )
    said = "^outer.thing.part needs more memory than there is: " if refused is MemoryError else said
    with pytest.raises(PDSError if about_values else refused, match=said):
        build(tree({"raises": kind}))


@pytest.mark.parametrize(
    ("target", "said"), [("nowhere.Thing", "outer.thing cannot be made: "), ("Whole", "unexpected keyword")]
)
def test_a_target_or_a_key_that_is_not_there_is_told(target, said):
    node = tree(other=1)
    if target != "Whole":
        node["_target_"] = target
    with pytest.raises(PDSError, match=said):
        build(node)


CLASSES = ["builtins.dict", "builtins.list", "fractions.Fraction", "pds.processes.schedules.ProcessTimes", f"{__name__}.Part"]
CLASSES += ["pds.preconditioning.filters.NoFilter", "pds.preconditioning.solenoids.NoSolenoid", "pds.lab.tracking.NoTracker"]
CLASSES += ["pds.samplers.edm.EDM", "pds.training.Trainer", "pds.conditioning.ClassifierFree", "builtins.object"]
OWN = {"NoFilter": "filter", "NoSolenoid": "solenoid", "NoTracker": "tracker"}
OWN |= {"EDM": "sampler", "Trainer": "trainer", "ClassifierFree": "guidance"}


@pytest.mark.parametrize("key", KINDS)
def test_a_class_of_another_kind_is_refused_by_its_path(key):
    for target in CLASSES:
        node = OmegaConf.create({key: {"_target_": target}})[key]
        if OWN.get(target.rpartition(".")[2]) == key:
            build(node)
            continue
        if (key, target) == ("guidance", "pds.samplers.edm.EDM"):
            continue  # samplers have a title, a check and a call, too
        python = target.startswith(("builtins", "fractions"))
        said = rf"^{key}._target_={target} is Python's own" if python else f"^{key} must be a .*, and {target} makes none"
        with pytest.raises(PDSError, match=said):
            build(node)


def test_nothing_of_python_itself_is_called_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, paths = (
        random.Random(0),
        ["os.{}", "pds.files.os.{}", "torch.os.{}", "pds.lab.runs.os.{}", "posix.{}", "shutil.os.{}"],
    )
    calls = [
        path.format(name) for path in paths for name in ("system", "abort", "_exit", "mkdir", "popen", "execv", "environ.clear")
    ]
    calls += [
        "builtins.print",
        "builtins.open",
        "builtins.eval",
        "subprocess.run",
        "pds.lab.runs.subprocess.Popen",
        "pty.spawn",
    ]
    calls += ["shutil.rmtree", "pathlib.Path.touch", "pds.files.Path", "importlib.import_module", "antigravity.webbrowser.open"]
    assert len(calls) > 50
    for call in calls:
        bad = {"_target_": call, "_args_": ["made"]} | ({"_partial_": True} if draw.random() < 0.3 else {})
        inner = draw.choice([{"part": bad}, {"part": {"_target_": f"{__name__}.Part", "steps": bad}}, {"part": [[bad]]}])
        node = draw.choice([bad, {"_target_": f"{__name__}.Whole", **inner}])
        with pytest.raises(PDSError, match=rf"^outer\..*_target_={call} is Python's own, and is never called here"):
            build(OmegaConf.create({"outer": {"thing": node}}).outer.thing)
    assert not list(tmp_path.iterdir()) and "antigravity" not in sys.modules


@pytest.mark.parametrize("seed", range(4))
def test_what_a_constructor_raises_for_its_values_leaves_its_traceback(seed, tmp_path, caplog):
    caplog.set_level(logging.INFO, "pds")
    draw = random.Random(seed)
    for case in range(15):
        log, kind = tmp_path / str(case) / "run.log", draw.choice([0, 1, 2, 3, 4, None])
        values = {"raises": kind} if kind is not None else {"steps": -draw.randrange(9)}
        with pytest.raises(PDSError), traced(log):
            build(tree(values))
        if kind is None:  # our own refusal says all
            assert not log.exists()
        else:
            assert RAISED[kind].__name__ in log.read_text() and "in __post_init__" in log.read_text()


def test_a_run_that_cannot_be_built_leaves_its_traceback_in_its_group(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "pds")
    cfg = composed("model=ncsnpp_small", f"outputs={tmp_path}", "group=mine", "metric=none")
    monkeypatch.setitem(cfg.model, "_target_", "pds.models.ncsnpp.NCSNpp")
    with pytest.raises(PDSError, match=r"^model, a pds.models.ncsnpp.NCSNpp, cannot be made of these values: TypeError"):
        prepared(cfg, [])
    assert "Traceback" in (tmp_path / "mine" / "run.log").read_text()
    assert f"the traceback is in {tmp_path / 'mine' / 'run.log'}" in caplog.text


@pytest.mark.parametrize("value", ["[true]", "[1]", "{a:1}"])
def test_options_of_files_are_refused_before_the_files_are_wanted(value):
    with pytest.raises(OptionError, match=r"^dataset\.source\.root must be text or a path, got "):
        Experiment.build(composed("metric=none", f"dataset.source.root={value}"))
