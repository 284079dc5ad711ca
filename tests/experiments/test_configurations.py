"""Every experiment composes and builds; what is misspelt or impossible fails before any sampling, in one sentence."""

from pathlib import Path

import pytest
from building import build, choose_device, resolved
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from run import Experiment
from schema import register

from pds.errors import PDSError
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in (CONF / "experiment").rglob("*.yaml")
)


def composed(*overrides, config="run"):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*overrides, "tracker=none"] if config == "run" else list(overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds(name):
    cfg = composed(f"experiment={name}")
    assert cfg.group == name.split("/")[0]
    assert Experiment.build(cfg).sample.shape == tuple(cfg.dataset.shape)


@pytest.mark.parametrize("group", ["model", "dataset", "filter", "solenoid", "sampler", "metric", "tracker", "debug"])
def test_every_choice_of_every_group_composes(group):
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert choices
    for choice in choices:
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            OmegaConf.to_container(compose("run", [f"{group}={choice}"]), resolve=False)


def test_the_paper_row_is_what_it_says():
    experiment = Experiment.build(composed("experiment=ncsn_mnist_t20/pds"))
    R = experiment.filter.frequency((1, 28, 28))
    assert (R[0, 0, 0], R[0, 14, 14]) == (1, pytest.approx(1.6))
    levels = experiment.sample.sampler.levels(experiment.model.sigmas)
    assert len(levels) == 20
    assert levels[0] == pytest.approx(1)
    assert levels[-1] == pytest.approx(0.01)
    # alpha_i = step_lr (sigma_i / sigma_L)^2 with the published step_lr.
    assert experiment.sample.sampler.step_size * 0.01**2 == pytest.approx(2e-5)


def test_choices_build_what_they_name():
    assert isinstance(Experiment.build(composed()).sample.preconditioner, Identity)
    for overrides in (
        ["filter=statistics", "filter.pixels=released"],
        ["solenoid=shift"],
        ["filter=parametric", "solenoid=fft"],
    ):
        assert isinstance(Experiment.build(composed(*overrides)).sample.preconditioner, FourierPreconditioner)


@pytest.mark.parametrize("key", ["imagse=3", "filter.lamda=1", "sampler.stepsize=1", "dataset.source.rot=x", "model.wdith=3"])
def test_a_misspelt_key_fails_at_composition(key):
    with pytest.raises(ConfigCompositionException, match=key.split("=")[0].split(".")[-1]):
        composed("filter=parametric", key)


def test_a_misspelt_key_in_a_file_fails_at_composition(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nsampler:\n  itertions: 20\n")
    with pytest.raises(Exception, match="itertions"):
        composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=typo")


def test_a_value_of_the_wrong_type_fails_at_composition():
    with pytest.raises(ConfigCompositionException, match="many"):
        composed("sampler.iterations=many")


IMPOSSIBLE = [
    (["filter=parametric", "filter.lam=0"], "filter.lam must be positive"),
    (["filter=parametric", "filter.r=0.7"], r"filter.r must be in \(0, 0.5\]"),
    (["filter=parametric", "filter.region=left"], "outside_low, outside_high, inside_high"),
    (["filter=statistics", "filter.alpha=0.5"], "filter.alpha must be at least 1"),
    (["filter=statistics", "filter.pixels=paper"], "use filter.pixels=released or none"),
    (["filter=statistics", "dataset.shape=[1,32,32]"], r"filter has the shape \(1, 28, 28\).*\(1, 32, 32\)"),
    (["sampler.iterations=25"], r"nearest: 20, 30"),
    (["sampler.step_size=2.5"], "sampler.step_size=2.5 diverges"),
    (["sampler.step_size=-1"], "sampler.step_size must be positive"),
    (["solenoid=shift", "solenoid.operator=S9"], "S1, S2, S3, S4, S5, S6"),
    (["solenoid=fft", "solenoid.omega=-1"], "solenoid.omega must be at least 0"),
    (["model.width=24"], "begin_conv.weight of shape"),
    (["model=ncsn", "model.checkpoint=/nowhere/x.pth"], "does not exist: set model.checkpoint"),
    (["dataset=cifar10", "model.checkpoint=null", "filter=statistics", "dataset.source.root=/nowhere"], "CIFAR-10 train batch"),
    (["dataset=cifar10", "model.checkpoint=null"], "mnist_classifier features need"),
    (["images=1"], "images must be at least 2"),
    (["batch_size=0"], "batch_size must be at least 1"),
    (["seed=-1"], "seed must be in"),
    (["dataset.shape=[28,28]"], r"shape \(C, H, W\) of positive numbers, got \[28, 28\]"),
    (["model.width=-1"], "model.width must be at least 1"),
    (["filter=statistics", "dataset.statistics_images=100"], "set dataset.statistics_file=null"),
    (["device=meta"], "device must be auto, cpu, cuda"),
    (["device=tpu9000"], "device must be auto, cpu, cuda"),
    (["threads=0"], "threads must be at least 1"),
]


@pytest.mark.parametrize(("overrides", "says"), IMPOSSIBLE)
def test_an_impossible_value_fails_before_any_sampling(overrides, says):
    cfg = composed(*overrides)
    with pytest.raises(PDSError, match=says) as error:
        Experiment.build(cfg)
    assert "\n" not in str(error.value)


def test_a_missing_value_names_its_key():
    with pytest.raises(PDSError, match=r"model.checkpoint has no value: give model.checkpoint="):
        resolved(composed("model=ncsn"))
    with pytest.raises(PDSError, match=r"dataset.shape has no value"):
        resolved(composed("dataset=folder"))


def test_the_training_configuration_builds():
    cfg = composed(config="train")
    assert build(cfg.trainer).rate(cfg.trainer.warmup // 2) < build(cfg.trainer).learning_rate
    assert build(cfg.model).checkpoint is None
    assert choose_device("cpu", None).type == "cpu"
