"""A quick composition is Hydra's own, and is independent of the ones before it."""

import copy
import random

import omegaconf._utils
import omegaconf.base
import pytest
import quick_composition
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.grammar_parser import OmegaConfGrammarParser
from test_configurations import EXPERIMENTS, PAPERS

from pds.lab.config import CONF
from pds.lab.schema import register


def composed(program, *overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, list(overrides), return_hydra_config=True)


@pytest.fixture
def _as_hydra_does(monkeypatch):
    """Compositions without what `hasten` changes."""
    register()
    for kind in (ConfigStore, omegaconf.base.Metadata):
        monkeypatch.delattr(kind, "__deepcopy__")
    monkeypatch.setattr(OmegaConf, "load", staticmethod(quick_composition._load))
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", quick_composition._map)
    for module in (omegaconf.base, omegaconf._utils):
        monkeypatch.setattr(module, "parse", quick_composition._parse.__wrapped__)


def told(node):
    """What OmegaConf knows about each node: its type, its flags and its value."""
    about = {name: str(value) for name, value in vars(node._metadata).items() if name != "resolver_cache"}
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return about | {"value": repr(node)}
    return about | {name: told(node._get_node(name)) for name in node}


EXAMPLES = random.Random(3).sample([*EXPERIMENTS, *PAPERS], 4)
CASES = [("run", [f"experiment={name}", "tracker=none"]) for name in EXAMPLES]
CASES += [
    ("run", ["tracker=several", "+tracker@tracker.mlflow=mlflow", "sampler/corrector=langevin", "model=ncsnpp_small"]),
    ("reproduce", ["table=few_steps"]),
    ("train", ["model=ncsnpp", "dataset=cifar10"]),
    ("tune", []),
]


@pytest.fixture(scope="module")
def quick():
    """Each case composed twice."""
    return [[told(composed(program, *given)) for _ in range(2)] for program, given in CASES]


@pytest.mark.usefixtures("_as_hydra_does")
def test_a_quick_composition_is_hydras_own(quick):
    for (program, given), twice in zip(CASES, quick, strict=True):
        assert twice == 2 * [told(composed(program, *given))], given


def test_a_second_composition_reads_parses_and_copies_nothing_that_it_has(monkeypatch):
    given = ["model=ncsnpp_small", "filter=statistics", "tracker=none"]
    first = told(composed("run", *given))

    def again(*arguments, **options):
        raise AssertionError("a second time")

    monkeypatch.setattr(yaml, "load", again)
    monkeypatch.setattr(OmegaConfGrammarParser, "configValue", again)
    assert copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()
    assert told(composed("run", *given)) == first


def test_a_composition_is_independent_of_those_before_it(tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    for images in (20, 30, 20):
        file.write_text(f"# @package _global_\nimages: {images}\nlabels: [1]\ntracker: {{}}\n")
        cfg = composed("run", f"hydra.searchpath=[file://{tmp_path}]", "tracker=none", "experiment=mine")
        assert (cfg.images, cfg.labels) == (images, [1])
        cfg.labels.append(2)
        cfg.sampler.iterations = 3
        OmegaConf.set_readonly(cfg.sampler, True)
