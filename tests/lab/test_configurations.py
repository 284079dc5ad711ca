"""Every experiment composes and builds. A misspelt or impossible setting fails before any sampling, in one sentence."""

import itertools
import json
import platform
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from pds.cards import CARDS
from pds.errors import PDSError
from pds.lab.config import build, resolved
from pds.lab.devices import choose_precision, prepare_device
from pds.lab.experiment import Experiment
from pds.lab.runs import provenance, run_name
from pds.lab.schema import CHOICES, PROGRAMS, node_of, papers, register
from pds.options import options_of
from pds.preconditioning.filters import NoFilter
from pds.preconditioning.preconditioner import FourierPreconditioner, Identity
from pds.samplers.annealed_langevin import AnnealedLangevin

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in (CONF / "experiment").rglob("*.yaml")
)


def composed(*overrides, config="run"):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*overrides, "tracker=none"] if config == "run" else list(overrides))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("extension/")])
def test_every_experiment_on_a_shipped_network_builds(name):
    cfg = composed(f"experiment={name}")
    assert cfg.group == name.split("/")[0]
    assert Experiment.build(cfg).sample.shape == tuple(cfg.dataset.shape)


PAPERS = sorted(f"{family}/{name}" for family, name, _ in papers())


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("extension/")])
def test_a_row_of_the_extension_asks_for_each_value_that_its_page_does_not_state(name):
    cfg = composed(f"experiment={name}")
    asked = ["images", "dataset.shape", "dataset.source.root", "model.make", "model.predicts", "model.checkpoint"]
    asked += ["model.data_range", "model.process.sigma_max", "sampler.iterations", "filter.alpha"]
    for key in asked + ["model.classes"] * ("imagenet" in name):
        with pytest.raises(OmegaConfBaseException, match=rf"{key} of this row on \w+ is \?\?\?, as .* give {key}=\.\.\."):
            OmegaConf.select(cfg, key)
    with pytest.raises(PDSError, match=r"^model.make of this row on .* is \?\?\?"):
        resolved(cfg)


def test_the_rows_of_the_papers_are_pairs():
    assert len(PAPERS) == 28
    assert not {name.split("/")[0] for name in PAPERS} & {name.split("/")[0] for name in EXPERIMENTS}


@pytest.mark.parametrize("name", [name for name in PAPERS if name.endswith("_pds")])
def test_a_row_of_the_papers_is_what_its_name_and_its_rule_say(name):
    vanilla, pds = (
        composed(f"experiment={which}", "model.checkpoint=null") for which in (name.replace("_pds", "_vanilla"), name)
    )
    assert vanilla.group == pds.group == name.split("/")[0]
    assert resolved(vanilla) | {"filter": 0} == resolved(pds) | {"filter": 0}
    assert isinstance(build(vanilla.filter), NoFilter)
    assert build(pds.filter).title.startswith("PDS")
    with torch.device("meta"):  # the full network, without its memory
        model = build(pds.model)
    sampler = build(pds.sampler)
    T = int(name.split("/t")[1].removesuffix("_pds"))
    assert len(sampler.levels(model.process)) == T
    if name.startswith("ncsnv2"):
        card = CARDS[pds.published.card]
        # The published step times the ratio of the iterations.
        speed_up = sampler.step_size / card.sampler.step_size
        assert int(card.sampler.iterations / speed_up + 1e-6) == T
    else:
        speed_up = round(model.process.levels / T)
        assert sampler.end == pytest.approx(1e-5 * speed_up)
        assert int(model.process.levels / speed_up) == T
    assert (pds.images, pds.metric._target_.rsplit(".")[-1]) == (50_000, "clean_fid_metric")


def plain(network):
    """The options that a network keeps."""
    return {name: value for name, value in vars(network).items() if isinstance(value, (bool, int, float, str))}


# The authors' published values for a model and a data set: parameters (tests/golden/keys), N, step or snr, data range.
PUBLISHED = {
    "ncsn mnist": ("ncsn_mnist", 1000, 0.2, 28),
    "ncsn cifar10": ("ncsn_cifar10", 1000, 0.2, 32),
    "ncsnv2 cifar10": ("ncsnv2_cifar10", 1160, 0.062, 32),
    "ncsnv2 celeba": ("ncsnv2_celeba", 2500, 0.033, 64),
    "ncsnv2 lsun dataset.category=church": ("ncsnv2_church", 3152, 0.049, 96),
    "ncsnv2 lsun dataset.category=tower": ("ncsnv2_tower", 3258, 0.018, 128),
    "ncsnv2 lsun dataset.category=bedroom": ("ncsnv2_bedroom", 3258, 0.018, 128),
    "ncsnv2 ffhq": ("ncsnv2_ffhq", 6933, 0.009, 256),
    "ncsnpp cifar10": ("ncsnpp_ve_cifar10_ncsnpp_continuous", 1000, 0.16, 32),
    "ncsnpp cifar10 model.blocks=8": ("ncsnpp_ve_cifar10_ncsnpp_deep_continuous", 1000, 0.16, 32),
    "ncsnpp lsun dataset.category=church": ("ncsnpp_ve_church_ncsnpp_continuous", 2000, 0.075, 256),
    "ncsnpp lsun dataset.category=bedroom": ("ncsnpp_ve_bedroom_ncsnpp_continuous", 2000, 0.075, 256),
    "ncsnpp ffhq": ("ncsnpp_ve_ffhq1024_ncsnpp_continuous", 2000, 0.15, 1024),
    "ncsnpp ffhq dataset.resolution=256": ("ncsnpp_ve_ffhq_256_ncsnpp_continuous", 2000, 0.075, 256),
    "ddpmpp cifar10": ("ncsnpp_vp_cifar10_ddpmpp_continuous", 1000, None, 32),
    "cld cifar10 sampler=sscs": ("cld_cifar10", 50, None, 32),
}


# Their cards in the library, in the same order.
CARD = dict(zip(PUBLISHED, (name for name in CARDS if name != "ncsn_celeba"), strict=True))


@pytest.mark.parametrize("choice", PUBLISHED)
def test_model_and_data_set_choose_what_was_published(choice):
    model_name, dataset_name, *more = choice.split()
    keys, iterations, step, size = PUBLISHED[choice]
    listing = json.loads((GOLDEN / "keys" / f"{keys}.json").read_text())
    cfg = composed(f"model={model_name}", f"dataset={dataset_name}", "model.checkpoint=null", *more)
    assert not any(isinstance(value, str) and value == "???" for value in resolved(cfg)["model"].values())
    with torch.device("meta"):
        model = build(cfg.model)
    state = model.score.network.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == listing["state_dict"]
    published = listing["config"]["model"]
    if model.process.title == "VE":
        sigma_max = published["sigma_max"] if "sigma_max" in published else published["sigma_begin"]
        assert model.process.sigma_max == sigma_max
        assert model.process.sigma_min == 0.01
        assert model.process.levels == published.get("num_scales", published.get("num_classes"))
    elif model.process.title == "CLD":
        names = {"beta_0": "beta0", "beta_1": "beta1", "gamma": "gamma", "numerical_eps": "numerical_eps"}
        assert vars(model.process) == {name: published[theirs] for name, theirs in names.items()} | {
            "mass": 1 / published["m_inv"]
        }
        assert model.data_range == (-1, 1)
    else:
        assert (model.process.beta_min, model.process.beta_max) == (published["beta_min"], published["beta_max"])
        assert model.data_range == (-1, 1)
    sampler = build(cfg.sampler)
    assert sampler.iterations == iterations
    assert model.shape[1] == size
    assert len(sampler.levels(model.process)) == iterations
    if isinstance(sampler, AnnealedLangevin):
        assert sampler.step_size == step
        assert sampler.denoise == model_name.startswith("ncsnv2")
    else:
        assert (sampler.corrector.snr if getattr(sampler, "corrector", None) else None) == step
    card = CARDS[CARD[choice]]
    with torch.device("meta"):
        carried = card.make(**card.options)
    assert (carried.title, carried.process, carried.shape) == (model.title, model.process, model.shape)
    assert (carried.data_range, card.sampler) == (model.data_range, sampler)
    assert plain(carried.score.network) == plain(model.score.network)
    assert {name: value.shape for name, value in carried.score.network.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }


# Groups that are composed together, one choice of each at a time; nested ones stand beside what has them.
GROUPS = [["model", "dataset", "filter", "solenoid", "sampler", "metric", "tracker", "debug", "dataset/reference"]]
GROUPS += [
    ["sampler/predictor", "sampler/corrector", "model/process", "model=ncsnpp_small"],
    ["sampler/schedule", "sampler=ddim"],
]


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_every_choice_composes(groups):
    beside = [override for override in groups if "=" in override]
    choices = {
        group: sorted({path.stem for path in (CONF / group).glob("*.yaml")} | CHOICES.get(group, {}).keys())
        for group in groups
        if group not in beside
    }
    assert all(choices.values())
    for row in itertools.zip_longest(*choices.values()):
        chosen = [f"{group}={choice}" for group, choice in zip(choices, row, strict=True) if choice]
        asked = ["model/process=ve"] if "model=own" in chosen else []
        OmegaConf.to_container(composed(*beside, *chosen, *asked), resolve=False)


def test_the_paper_row_is_what_it_says():
    experiment = Experiment.build(composed("experiment=ncsn_mnist_t20/pds"))
    R = experiment.filter.frequency((1, 28, 28))
    assert (R[0, 0, 0], R[0, 14, 14]) == (1, pytest.approx(1.6))
    levels = experiment.sample.sampler.levels(experiment.model.process)
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


MISSPELT = {
    "model": "wdith",
    "dataset": "statistic_images",
    "dataset.source": "rot",
    "dataset.reference": "image",
    "filter": "lamda",
    "solenoid": "omgea",
    "sampler": "itertions",
    "sampler.predictor": "flow",
    "sampler.corrector": "snir",
    "metric": "cahce",
    "tracker": "proejct",
}
CHOSEN = ["filter=parametric", "solenoid=fft", "metric=clean_fid", "model=ncsnpp_small", "sampler/corrector=langevin"]


@pytest.mark.parametrize("group", MISSPELT)
def test_a_misspelt_key_in_a_file_fails_at_composition(tmp_path, group):
    # On a command line Hydra itself refuses it; in a file only the schema does.
    (tmp_path / "experiment").mkdir()
    *outer, inner = group.split(".")
    content = {inner: {MISSPELT[group]: 1}}
    for name in reversed(outer):
        content = {name: content}
    (tmp_path / "experiment" / "typo.yaml").write_text(f"# @package _global_\n{json.dumps(content)}\n")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception, match=f"'{MISSPELT[group]}'"):
        compose("run", [f"hydra.searchpath=[file://{tmp_path}]", *CHOSEN, "experiment=typo"])


def test_a_value_of_the_wrong_type_fails_at_composition():
    with pytest.raises(ConfigCompositionException, match="many"):
        composed("sampler.iterations=many")


IMPOSSIBLE = [
    (["filter=parametric", "filter.region=left"], "filter.region must be one of outside_low, outside_high, inside_high"),
    (["filter=statistics", "filter.alpha=many"], "filter.alpha must be a number from 1 to 1000000 or auto, got 'many'"),
    (
        ["filter=statistics", "filter.alpha=auto"],
        "none was published for this model and data set, and no first guess is known for annealed Langevin",
    ),
    (
        ["model=ncsnpp_small", "filter=statistics", "filter.alpha=auto", "sampler.iterations=20"],
        "filter.alpha must be a number: auto gives 1 at 20 iterations",
    ),
    (["filter=statistics", "filter.pixels=paper"], "filter.pixels must be released or none"),
    (
        ["filter=statistics", "dataset.shape=[1,32,32]", "model.checkpoint=null"],
        r"filter has the shape \(1, 28, 28\).*\(1, 32, 32\)",
    ),
    (["sampler.iterations=25"], r"nearest: 20, 30"),
    (["sampler.step_size=2.5"], r"sampler.step_size must be below 2 .*and 2.5 diverges"),
    (["model.width=24"], "begin_conv.weight of shape"),
    (["model=ncsnpp", "model.checkpoint=null", "model/process=vp"], "model.scale_by_sigma must be false for a VP process"),
    (["model=ddpmpp", "model.checkpoint=null", "model/process=ve"], "model.scale_by_sigma must be true for a VE process"),
    (
        ["model=ddpmpp", "model.checkpoint=null", "model.embedding=fourier"],
        "model.embedding must be positional for a VP",
    ),
    (["model=ncsnpp_small", "model.checkpoint=asset:mnist_ncsn.safetensors"], "checkpoint of another network"),
    (["model=ncsnpp_small", "dataset.shape=[3,28,28]"], r"all_modules.3.weight of shape \(16, 1, 3, 3\)"),
    (["dataset.shape=[1,32,32]"], r"trained with \[1, 28, 28\]: choose images of that shape"),
    (["model=ncsnpp_small", "dataset.shape=[1,32,32]", "model.attention=[8]"], r"trained with \[1, 28, 28\]: choose images"),
    (["model.sigma_begin=5"], r"model.sigma_begin is 5.0, .* set model.sigma_begin=1\.0"),
    (["model=ddpmpp_small", "model.process.beta_max=10"], r"set model.process.beta_max=20\.0"),
    (["model=ddpmpp_small", "model/process=sub_vp"], "model.process is 'sub-VP', .*trained with 'VP'"),
    (["model=ncsnpp_small", "dataset.shape=[1,30,30]"], "model.shape must have a size divisible by 4"),
    (["model=ncsnpp_small", "sampler.iterations=0"], "sampler.iterations must be a whole number from 2 to 1000000, got 0"),
    (["model=ncsnpp_small", "model.fir=true"], "model.fir is True, .* set model.fir=false"),
    (["model.rescale=false"], "model.rescale is False, .* set model.rescale=true"),
    (
        ["model=ncsnpp", "dataset=ffhq", "dataset.resolution=512", "model.checkpoint=null"],
        "the authors published no ncsnpp_ffhq512, only ncsnpp_cifar10, .*ncsnpp_ffhq1024",
    ),
    (["model=ncsnpp_small", "sampler=edm", "filter=statistics"], "EDM Heun takes no filter and no solenoid"),
    (["sampler=mild", "sampler.gamma=1"], "sampler.gamma must be a number or a list of numbers at least 0 and below 1, got 1"),
    (["sampler=diffusers_ddim"], "sampler.iterations must be at most 10, the noise levels of the model, got 50"),
    (["sampler=diffusers_ddim", "sampler.scheduler=LMSDiscreteScheduler"], "sampler.scheduler must be one of DDIMScheduler"),
    (["model=ncsnpp_small", "sampler/predictor=none"], "needs a predictor, a corrector or both"),
    (
        ["model=ncsnpp_small", "sampler/corrector=langevin", "sampler.corrector.snr=-1"],
        "^sampler.corrector.snr must be a number from 1e-09 to 1000, got -1.0$",
    ),
    (
        ["model=ncsnpp", "dataset=lsun", "dataset.category=tower", "model.checkpoint=null"],
        "published no ncsnpp_tower, only ncsnpp_cifar10, .*: choose",
    ),
    (["model=ncsn", "model.checkpoint=/nowhere/x.pth"], "/nowhere/x.pth does not exist: give a weights file"),
    (["model=ddpm", "dataset=cifar10", "model.checkpoint=/nowhere"], "does not exist: give a diffusers folder"),
    (["model=ddpm", "dataset=cifar10", "model.checkpoint=null"], "model.checkpoint must be a diffusers folder"),
    (["dataset=cifar10", "model.checkpoint=null", "filter=statistics", "dataset.source.root=/nowhere"], "CIFAR-10 train batch"),
    (["dataset=cifar10", "model.checkpoint=null", "metric=mnist_classifier"], "need .* take cifar10_classifier or clean_fid"),
    (["dataset=lsun", "dataset.category=castle", "model.checkpoint=null"], "dataset.category must be one of church, tower"),
    (
        ["dataset=lsun", "dataset.preprocessing=mine", "model.checkpoint=null"],
        "preprocessing must be one of ncsnv2, score_sde",
    ),
    (
        ["dataset=celeba", "dataset.resolution=256", "model.checkpoint=null"],
        "dataset.resolution must be a .* from 1 to 140",
    ),
    (["dataset=lsun", "dataset.reference.split=test", "model.checkpoint=null"], "one of train, trainfull"),
    (
        ["dataset=lsun", "model.checkpoint=null", "filter=statistics", "dataset.source.root=/nowhere"],
        "LSUN church train not found",
    ),
    (["images=1"], "images must be at least 2"),
    (["batch_size=0"], "^batch_size must be a whole number from 1 to 65536, got 0$"),
    (["seed=-1"], "^seed must be a whole number from 0 to 18446744073709551615, got -1$"),
    (["dataset.shape=[28,28]"], r"shape must be a list of 3 whole numbers from 1 to 16384, got \[28, 28\]"),
    (["filter=statistics", "dataset.statistics_images=100"], "leave statistics_file out"),
    (["device=meta"], "device must be auto, cpu, cuda"),
    (["device=tpu9000"], "device must be auto, cpu, cuda"),
    (["threads=0"], "^threads must be a whole number from 1 to 1024, got 0$"),
]


@pytest.mark.parametrize(("overrides", "says"), IMPOSSIBLE)
def test_an_impossible_value_fails_before_any_sampling(overrides, says):
    cfg = composed(*overrides)
    with pytest.raises(PDSError, match=says) as error:
        resolved(cfg)
        Experiment.build(cfg)
    assert "\n" not in str(error.value)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PDSError, match="compile=true needs a C\\+\\+ compiler, and there is no no-such-compiler here"):
        Experiment.build(composed("compile=true"))


def test_the_precision_is_part_of_a_run_and_compiling_is_not():
    plain, compiled = (resolved(composed(*given)) for given in ([], ["compile=true"]))
    rounded = [resolved(composed(given)) for given in ("bf16=true", "tf32=true", "tf32=false")]
    assert run_name([], plain) == run_name([], compiled)
    assert len({run_name([], config) for config in (plain, *rounded)}) == 4
    assert run_name(["compile=true"], compiled) == run_name([], plain)
    before = {key: value for key, value in plain.items() if key not in ("bf16", "compile", "tf32")}
    assert run_name([], before) == run_name([], plain), "runs keep the names they had before there were these keys"
    assert "bf16" in Experiment.build(composed("bf16=true")).label


def test_tensorfloat_is_what_was_asked_for_or_as_torch_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    try:
        for asked, convolutions, products in [(True, True, True), (None, True, False), (False, False, False)]:
            choose_precision(asked)
            assert provenance(torch.device("cuda"))["tf32"] == {"convolutions": convolutions, "products": products}
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


class StandInFeatures:
    """Replaces Inception, so that no test downloads its weights."""

    name, dimension, provenance = "inception", 2048, {"features": "inception", "resize": "clean", "weights_sha256": "0"}

    def __init__(self, device, cache):
        pass

    def __call__(self, images):
        pixels = images.float().mean(1).flatten(1)
        return np.resize(pixels.numpy(), (len(pixels), self.dimension)).astype(np.float32)


REFERENCES = [
    (["dataset=cifar10"], "cifar10_clean_train_32"),
    (["dataset=lsun", "dataset.resolution=16"], "lsun_church_16_score_sde_inception_train_3-"),
    (["dataset=lsun", "dataset.resolution=16", "dataset.preprocessing=ncsnv2"], "lsun_church_16_ncsnv2_inception_train_3-"),
    (["dataset=lsun"], "lsun_church_clean_train_256"),
    (["dataset=lsun", "dataset.reference.split=trainfull"], "lsun_church_clean_trainfull_256"),
    (["dataset=ffhq", "dataset.resolution=16"], "ffhq_16_score_sde_inception_all_3-"),
    (["dataset=ffhq", "dataset.resolution=256"], "ffhq_clean_trainval70k_256"),
    (["dataset=celeba", "dataset.resolution=16"], "celeba_16_ncsnv2_inception_train_3-"),
    (["dataset=folder", "dataset.shape=[3,20,20]", "dataset.source.root=${oc.env:PDS_DATA}/ffhq"], "folder_inception_all_3-"),
    (
        [
            *["dataset=folder", "dataset.shape=[3,64,64]", "dataset.source.root=/nowhere"],
            *["dataset/reference=published", "dataset.reference.name=mine", "dataset.reference.split=custom"],
        ],
        "mine_clean_custom_64",
    ),
]


@pytest.mark.parametrize(("overrides", "file"), REFERENCES)
def test_clean_fid_finds_or_makes_the_reference_of_every_data_set(overrides, file, tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_DATA", str(tmp_path))
    monkeypatch.setattr("pds.evaluation.metric.InceptionFeatures", StandInFeatures)
    for folder, size in (("lsun/church_outdoor_train", 20), ("ffhq", 20), ("celeba", 140)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(1, 4):
            Image.fromarray(np.full((size, size, 3), 40 * i, np.uint8)).save(tmp_path / folder / f"{i}.png")
    published = tmp_path / "cache" / "statistics" / f"{file}.npz"
    if "_clean_" in file:
        published.parent.mkdir(parents=True)
        np.savez(published, mu=np.zeros(2048), sigma=np.eye(2048))
    cfg = composed(*overrides, "metric=clean_fid", f"metric.cache={tmp_path}/cache")
    metric = build(cfg.metric, build(cfg.dataset), "cpu")
    assert metric.name("fid", 50_000) == "clean_fid_inception_50k"
    assert [path.name.startswith(file) for path in (tmp_path / "cache").glob("*/*.npz")] == [True]


def test_too_few_or_unreadable_images_fail_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pds.evaluation.metric.InceptionFeatures", StandInFeatures)
    (tmp_path / "ffhq").mkdir()
    data = ["dataset=ffhq", f"dataset.source.root={tmp_path}", "dataset.resolution=8", "model.checkpoint=null", "model.width=4"]
    for i in range(3):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "ffhq" / f"{i}.png")
    with pytest.raises(PDSError, match="has 3 images, and statistics_images is 200: give statistics_images=3, or"):
        Experiment.build(composed(*data, "filter=statistics", "metric=none"))
    (tmp_path / "ffhq" / "1.png").write_bytes(b"no image")
    for asked in (["filter=statistics", "dataset.statistics_images=3", "metric=none"], ["metric=clean_fid"]):
        with pytest.raises(PDSError, match=r"1\.png is no PNG"):
            Experiment.build(composed(*data, *asked))
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_auto_takes_a_gpu_that_is_free_and_leases_nothing_where_there_is_no_choice(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_CACHE", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    seen = ["GPU-test-a"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(seen))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(seen))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=seen[index]))
    assert prepare_device(name, None) == torch.device("cuda:0")
    seen.append("GPU-test-b")
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "3")
        patch.setenv("LOCAL_WORLD_SIZE", "4")
        assert prepare_device(name, None) == torch.device("cuda:1")
        with pytest.raises(PDSError, match=r"device=cuda:1 is one GPU for all 4 processes of torchrun: use device=cuda"):
            prepare_device("cuda:1", None)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr("pds.lab.devices.free_gpu", lambda uuids: uuids.index("GPU-test-b"))
    assert prepare_device(name, None) == torch.device("cuda:1")
    assert prepare_device("cuda:0", None) == torch.device("cuda:0")
    seen.clear()
    if name == "auto":
        assert prepare_device(name, None) == torch.device("cpu")
    else:
        with pytest.raises(PDSError, match="torch sees 0 GPUs here: use device=cpu"):
            prepare_device(name, None)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_run_keeps_the_memory_that_a_layer_freed():
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        activations = [torch.ones(4 << 20) for _ in range(10)]  # 160 MiB, 40,960 pages
        del activations
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    prepare_device("cpu", None)
    assert min(faults() for _ in range(4)) < 10_000


def test_the_model_says_whose_preprocessing_its_data_had():
    assert composed("dataset=lsun", "model=ncsnv2").dataset.preprocessing == "ncsnv2"
    assert composed("dataset=celeba", "model=ncsnv2").dataset.preprocessing == "ncsnv2"
    assert composed("dataset=lsun").dataset.preprocessing == "score_sde"


def test_a_missing_value_names_its_key():
    with pytest.raises(PDSError, match=r"model.checkpoint has no value: give model.checkpoint="):
        resolved(composed("model=ncsn"))
    with pytest.raises(PDSError, match=r"dataset.shape has no value"):
        resolved(composed("dataset=folder"))


def test_ddpm_is_sampled_as_published():
    cfg = composed("model=ddpm", "dataset=cifar10", "model.checkpoint=x")
    assert resolved(cfg)["model"]["shape"] == [3, 32, 32]
    sampler = build(cfg.sampler)
    assert (sampler.title, sampler.iterations, sampler.nfe_per_iteration) == ("ancestral", 1000, 1)


def test_the_training_configuration_builds():
    cfg = composed(config="train")
    assert build(cfg.trainer).rate(cfg.trainer.warmup // 2) < build(cfg.trainer).learning_rate
    assert build(cfg.model).checkpoint is None
    assert build(composed("model.checkpoint=asset:mnist_ncsn.safetensors", config="train").model).checkpoint.ema
    assert prepare_device("cpu", None).type == "cpu"


# The value of auto for the published pairs; no pair was published for FFHQ at 256 pixels.
@pytest.mark.parametrize(
    ("choice", "alpha"),
    [
        ("model=ncsnpp dataset=cifar10 sampler.iterations=200", 10.0),
        ("model=ncsnpp dataset=lsun sampler.iterations=80", 2.41),
        ("model=ncsnpp dataset=ffhq sampler.iterations=132", 10.0),
        ("model=ncsnpp_small sampler.iterations=20 filter.reference.alpha=3 filter.reference.iterations=10", 6.0),
    ],
)
def test_auto_scales_alpha_with_the_iterations(choice, alpha):
    cfg = composed(*choice.split(), "filter=statistics", "filter.alpha=auto", "model.checkpoint=null")
    assert build(cfg.filter).alpha == pytest.approx(alpha, rel=2e-3)


# Files of data: published values, experiments and tables, and additions to a run.
DATA = {"published", "experiment", "table", "debug", "hydra", "local", "papers.yaml"}
GROUP_FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] not in DATA)


def merged(outer, inner):
    return outer | {
        k: merged(outer[k], v) if isinstance(v, dict) and isinstance(outer.get(k), dict) else v for k, v in inner.items()
    }


def stated(group, name):
    """The values of a choice, from its file and from all files that it builds on in this group."""
    file = CONF / group / f"{name}.yaml"
    if not file.exists():
        prefix, nested = (
            ("", group) if group in CHOICES and name in CHOICES[group] else ("schema/", group.removeprefix("schema/"))
        )
        node = OmegaConf.to_container(OmegaConf.structured(node_of(group, CHOICES[f"{prefix}{nested}"][name])))
        return {key: value for key, value in node.items() if key != "defaults"}
    content = OmegaConf.to_container(OmegaConf.load(file))
    return merged(inherited(group, content), {key: value for key, value in content.items() if key != "defaults"})


def inherited(group, content):
    """The values that a file builds on."""
    found = {}
    for entry in content.get("defaults", []):
        base, _, package = entry.partition("@") if isinstance(entry, str) else ("", "", "")
        if package == "_here_":
            *above, name = base.strip("/").split("/")
            found = merged(found, stated("/".join(above), name))
        elif package:
            *above, name = base.strip("/").split("/")
            found = merged(found, {package: stated("/".join(above), name)})
        elif isinstance(entry, str) and entry != "_self_":
            found = merged(found, stated(group, entry))
    return found


def literals(node, prefix=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from literals(value, (*prefix, key))
        elif not (isinstance(value, str) and ("${" in value or value == "???")):
            yield (*prefix, key), value


def at(node, place):
    for key in place:
        node = node.get(key, {}) if isinstance(node, dict) else {}
    return node


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_no_file_repeats_a_default_and_the_file_of_a_constructor_contradicts_none(file):
    group, name = str(file.parent), file.stem
    content = OmegaConf.to_container(OmegaConf.load(CONF / file))
    program = PROGRAMS.get(name) if group == "." else None
    base = {key: option.default for key, option in options_of(program[0]).items()} if program else inherited(group, content)
    own = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    # The one file of a constructor does not set options with a default; a variant of it departs from defaults.
    only = name in CHOICES.get(f"schema/{group}", {}) or program
    for place, value in literals(own):
        default = at(base, place)
        assert value != default or default == {}, f"{'.'.join(map(str, place))} repeats {default!r}"
        assert not only or default in ({}, "???", None), f"{'.'.join(map(str, place))}={value!r} contradicts {default!r}"


@pytest.mark.parametrize(
    ("dataset", "metric"), [("mnist", "mnist"), ("cifar10", "cifar10"), ("cifar10_jpeg", "cifar10"), ("ffhq", "mnist")]
)
def test_a_data_set_chooses_its_shipped_classifier(dataset, metric):
    target = composed(f"dataset={dataset}").metric._target_
    assert target == f"pds.evaluation.metric.{metric}_classifier_metric"


@pytest.mark.parametrize(
    ("data", "classifier"), [("mnist", "mnist"), ("cifar10", "cifar10"), ("cifar10_jpeg", "cifar10"), ("lsun", "mnist")]
)
def test_the_metric_and_its_features_follow_the_data_set(data, classifier):
    assert composed(f"dataset={data}").metric._target_.endswith(f".{classifier}_classifier_metric")
    assert composed(f"dataset={data}", "metric=panel").metric.features == f"{classifier}_classifier"
