"""The choices for each part of a run, and the type of every key, as in the signature.

A misspelt key or a value of the wrong type fails at composition. `MISSING` is a key without a default. The files in conf/ add
data: published configurations, experiments, tables, and choices that belong together.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union, cast, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from pds.cards import CARDS, MAKERS, Card
from pds.conditioning import ClassifierFree
from pds.data.celeba import CelebA
from pds.data.cifar10 import cifar10, cifar10_jpeg
from pds.data.dataset import Dataset, form_of_dataset
from pds.data.ffhq import FFHQ
from pds.data.folder import ImageFolder
from pds.data.lsun import LSUN
from pds.data.mnist import mnist
from pds.errors import PDSError
from pds.evaluation.metric import cifar10_classifier_metric, clean_fid_metric, mnist_classifier_metric, no_metric, panel_metric
from pds.evaluation.reference import MadeReference, PublishedReference, published_or_made
from pds.lab.config import CONF, defaults
from pds.lab.own import own
from pds.lab.settings import Benchmark, ExcessNoise, Gaussian, Reproduce, Run, Train, Tune
from pds.lab.trackers.mlflow import MLflowTracker
from pds.lab.trackers.tensorboard import TensorBoardTracker
from pds.lab.trackers.trackio import TrackioTracker
from pds.lab.trackers.wandb import WandbTracker
from pds.lab.tracking import NoTracker
from pds.models.edm import edm
from pds.models.unet2d import unet2d
from pds.options import Search, options_of
from pds.preconditioning.filters import NoFilter, ParametricFilter, statistics_filter
from pds.preconditioning.solenoids import FourierSolenoid, NoSolenoid, ShiftSolenoid
from pds.processes.critically_damped import CriticallyDamped
from pds.processes.discrete import discrete_vp
from pds.processes.forward import SubVariancePreserving, VarianceExploding, VariancePreserving
from pds.processes.schedules import LearningRates, ProcessTimes
from pds.remedies import band_correction, epsilon_scaling, level_shift, seen_noise, time_shift
from pds.samplers.accelerated import DDIM, AcceleratedDeterministic, AcceleratedStochastic
from pds.samplers.adaptive import AdaptiveSDE
from pds.samplers.analytic import AnalyticDDIM
from pds.samplers.annealed_langevin import AnnealedLangevin
from pds.samplers.critically_damped import SSCS, CLDEulerMaruyama, CLDFlow
from pds.samplers.diffusers_schedulers import DiffusersScheduler
from pds.samplers.dpm_solver import DPMSolver
from pds.samplers.edm import EDM
from pds.samplers.er_sde import ERSDE
from pds.samplers.lms import LMS
from pds.samplers.momentum_langevin import MomentumLangevin
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.predictor_corrector import (
    Ancestral,
    AnnealedLangevinSteps,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    no_corrector,
    no_predictor,
)
from pds.samplers.restart import Restart
from pds.samplers.sa_solver import SASolver
from pds.training import Trainer


class PartialTarget(NamedTuple):
    """A target with only some of its options in the configuration.

    Attributes:
        given: options that the configuration does not have.
        asked: options that it must have, whatever their default.
        opened: whether another object calls the target, when it needs the result.
    """

    target: Callable[..., Any]
    given: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    opened: bool = False


FORM = ("resolution", "preprocessing", "category")

# The choices of each group. A choice of "schema/group" is the base of a file in conf/group, which adds the interpolations.
CHOICES: dict[str, dict[str, Callable[..., Any] | PartialTarget]] = {
    "schema/model": {
        **{network.__name__: PartialTarget(network, asked=("checkpoint",)) for network in (*MAKERS.values(), unet2d, edm)},
        "own": own,
    },
    "schema/model/process": {"ve": VarianceExploding},
    "model/process": {
        "vp": VariancePreserving,
        "sub_vp": SubVariancePreserving,
        "discrete_vp": discrete_vp,
        "cld": CriticallyDamped,
    },
    "schema/dataset": {
        "dataset": Dataset,
        "scenes": form_of_dataset,
        "photographs": PartialTarget(form_of_dataset, given=("category",)),
    },
    "schema/dataset/source": {
        "mnist": PartialTarget(mnist, opened=True),
        "cifar10": PartialTarget(cifar10, opened=True),
        "cifar10_jpeg": PartialTarget(cifar10_jpeg, opened=True),
        "celeba": PartialTarget(CelebA, given=FORM, opened=True),
        "lsun": PartialTarget(LSUN, given=FORM, opened=True),
        "ffhq": PartialTarget(FFHQ, given=FORM, opened=True),
        "folder": PartialTarget(ImageFolder, given=("split",), opened=True),
    },
    "schema/dataset/reference": {"published": PublishedReference, "published_or_made": published_or_made},
    "dataset/reference": {"made": MadeReference},
    "schema/filter": {"statistics": statistics_filter},
    "filter": {"none": NoFilter, "parametric": ParametricFilter},
    "solenoid": {"none": NoSolenoid, "fft": FourierSolenoid, "shift": ShiftSolenoid},
    "sampler": {
        "annealed_langevin": AnnealedLangevin,
        "mild": MomentumLangevin,
        "predictor_corrector": PredictorCorrector,
        "edm": EDM,
        "dpm_solver": DPMSolver,
        "preconditioned_sde": PreconditionedSDE,
        "er_sde": ERSDE,
        "sa_solver": SASolver,
        "restart": Restart,
        "lms": LMS,
        "adaptive": AdaptiveSDE,
        "ddim": DDIM,
        "analytic_ddim": AnalyticDDIM,
        "accelerated_deterministic": AcceleratedDeterministic,
        "accelerated_stochastic": AcceleratedStochastic,
        "cld_em": CLDEulerMaruyama,
        "sscs": SSCS,
        "cld_flow": CLDFlow,
    },
    "schema/sampler": {"predictor_corrector": PredictorCorrector, "diffusers": DiffusersScheduler},
    "sampler/schedule": {"process": ProcessTimes, "learning_rates": LearningRates},
    "sampler/predictor": {
        "reverse_diffusion": ReverseDiffusion,
        "euler_maruyama": EulerMaruyama,
        "ancestral": Ancestral,
        "none": no_predictor,
    },
    "sampler/corrector": {"none": no_corrector},
    "schema/sampler/corrector": {"langevin": Langevin, "annealed_langevin": AnnealedLangevinSteps},
    "remedy": {remedy.__name__: remedy for remedy in (epsilon_scaling, time_shift, level_shift, band_correction, seen_noise)},
    "guidance": {"classifier_free": ClassifierFree},
    "metric": {
        "none": no_metric,
        "mnist_classifier": mnist_classifier_metric,
        "cifar10_classifier": cifar10_classifier_metric,
        "clean_fid": clean_fid_metric,
    },
    "schema/metric": {"panel": panel_metric},
    "tracker": {
        "none": NoTracker,
        "wandb": WandbTracker,
        "tensorboard": TensorBoardTracker,
        "mlflow": MLflowTracker,
        "trackio": TrackioTracker,
    },
    "schema/trainer": {"default": Trainer},
}


@dataclass
class Sweep:
    name: str = "runs"
    where: list[str] = field(default_factory=list)  # swept keys of place and speed
    number: int | None = None
    points: int | None = None
    since: float | None = None


@dataclass
class SmallForm:
    another_model: bool = True  # than the printed one
    base: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # columns of the table's own rows, if it has no cells


@dataclass
class TableConfig:
    title: str = MISSING
    source: str = MISSING
    quantity: str = MISSING
    metric: str = MISSING
    images: int = MISSING
    note: str = ""
    base: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    small: SmallForm = field(default_factory=SmallForm)


SAMPLING = ("model", "dataset", "filter", "solenoid", "sampler")
# The options of each program, the groups that it builds, and the other keys of its configuration. None marks a group that is
# absent unless it is chosen.
PROGRAMS: dict[str, tuple[type, tuple[str, ...], dict[str, type | None]]] = {
    "run": (Run, (*SAMPLING, "metric", "tracker"), {"remedy": None, "guidance": None, "sweep": Sweep}),
    "tune": (Tune, (), {"space": None}),
    "train": (Train, ("model", "dataset", "trainer"), {}),
    "benchmark": (Benchmark, SAMPLING, {}),
    "gaussian": (Gaussian, SAMPLING, {}),
    "excess_noise": (ExcessNoise, ("model", "dataset", "filter", "sampler"), {}),
    "reproduce": (Reproduce, (), {"table": TableConfig}),
}

PLAIN = (bool, int, float, str, NoneType, Any, Path)


def is_plain(annotation: Any) -> bool:
    """Whether an option is a value that a configuration can hold, and no object."""
    if get_origin(annotation) in (Literal, Callable):
        return get_origin(annotation) is Literal
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return all(is_plain(part) for part in parts if part is not Ellipsis) if parts else annotation in PLAIN


def typed(annotation: Any) -> Any:
    """The type of a plain option for OmegaConf. For types that it does not know, only the check at building applies."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Any if any(isinstance(limit, Search) and limit.auto for limit in arguments[1:]) else typed(arguments[0])
    if origin is Literal:
        return type(arguments[0])
    if origin in (Union, UnionType):
        kinds = {typed(kind) for kind in arguments if kind is not NoneType}
        return Optional[kinds.pop()] if len(kinds) == 1 and NoneType in arguments else Any  # noqa: UP045
    if origin in (list, tuple, Sequence):
        return list[typed(arguments[0])]  # type: ignore[misc]
    if origin in (dict, Mapping):
        return dict[str, Any]
    # Not bool: OmegaConf accepts any whole number for it.
    return str if annotation is Path else annotation if annotation in (int, float, str) else Any


def fields_of(
    target: Callable[..., Any], group: str = "", given: tuple[str, ...] = (), asked: tuple[str, ...] = ()
) -> list[tuple[str, Any, Any]]:
    """The keys of a node: name, type and default of each option that a configuration can give."""
    made = []
    for name, option in options_of(target).items():
        part = f"{group}/{name}" in CHOICES or f"schema/{group}/{name}" in CHOICES
        if name in given or not (is_plain(option.annotation) or option.required or part):
            continue
        default = option.default if is_plain(option.annotation) and not option.required and name not in asked else MISSING
        if isinstance(default, (tuple, list, Mapping)):
            plain: Any = dict(default) if isinstance(default, Mapping) else list(default)
            default = field(default_factory=functools.partial(copy.copy, plain))
        made.append((name, typed(option.annotation) if is_plain(option.annotation) else Any, default))
    return made


@functools.cache
def texts() -> frozenset[str]:
    """The keys that hold a name or a path in every program and every choice of their group."""
    places: list[tuple[str, Any]] = [("", program) for program, *_ in PROGRAMS.values()]
    places += [
        (f"{group.removeprefix('schema/').replace('/', '.')}.", kind) for group in CHOICES for kind in CHOICES[group].values()
    ]
    kinds: dict[str, set[Any]] = {}
    for prefix, choice in places:
        for name, option in options_of(choice.target if isinstance(choice, PartialTarget) else choice).items():
            kinds.setdefault(f"{prefix}{name}", set()).add(typed(option.annotation) if is_plain(option.annotation) else Any)
    return frozenset(name for name, found in kinds.items() if found <= {str, str | None})


def parts_of(target: Callable[..., Any], group: str) -> list[Any]:
    """The default choices of a node's options that are objects with groups of their own."""
    chosen: list[Any] = []
    for name, option in options_of(target).items():
        offered = {**CHOICES.get(f"schema/{group}/{name}", {}), **CHOICES.get(f"{group}/{name}", {})}
        if offered:
            makers = {maker: choice for choice, maker in offered.items()}
            chosen.append({name: "none" if option.default is None else makers.get(type(option.default), MISSING)})
    return chosen


def node_of(group: str, choice: Callable[..., Any] | PartialTarget) -> type:
    """The structured configuration of a class or a function."""
    target, given, asked, opened = choice if isinstance(choice, PartialTarget) else PartialTarget(choice)
    keys: list[tuple[str, Any, Any]] = [("_target_", str, f"{target.__module__}.{target.__qualname__}")]
    if opened:
        keys.append(("_partial_", bool, True))
    parts = parts_of(target, group)
    if parts and not group.startswith("schema/"):
        keys.insert(0, ("defaults", list[Any], field(default_factory=lambda: [*parts, "_self_"])))
    return dataclasses.make_dataclass(target.__name__, [*keys, *fields_of(target, group.removeprefix("schema/"), given, asked)])


def published(name: str, stand_in: str | None = None, *, _root_: DictConfig, _parent_: DictConfig, _node_: Any) -> Any:
    """${published:NAME,CARD}: the published value of this name for the model and the data set.

    The value stands in `published`, or on the card that `published.card` names. Without these, CARD replaces the card. Without
    a CARD the value is the option's default.
    """
    value = OmegaConf.select(_root_, f"published.{name}")
    card = OmegaConf.select(_root_, "published.card") or stand_in
    if value is None and card is not None:
        value = card_of(card).facts.get(name)
    if value is None:
        value = defaults(_parent_._target_)[_node_._key()]
    return list(value) if isinstance(value, tuple) else value


def sampler_of(model: str) -> str:
    """${sampler_of:MODEL}: the sampler of the model's name, the published one, or else the predictor-corrector."""
    named = model in CHOICES["sampler"] or (CONF / "sampler" / f"{model}.yaml").is_file()
    return model if named else "predictor_corrector"


def metric_of(dataset: str) -> str:
    """${metric_of:DATASET}: the shipped classifier of the data set, or else that of MNIST, which refuses images of
    another shape."""
    name = f"{dataset.removesuffix('_jpeg')}_classifier"
    return name if name in CHOICES["metric"] else "mnist_classifier"


def unstated(data: str, *, _node_: Any) -> Any:
    """${unstated:DATA}: a value in a row of the extension that its abstract page, our only source, does not state."""
    key = _node_._get_full_key("")
    raise PDSError(f"{key} of this row on {data} is ???, as the paper's abstract page does not state it: give {key}=...")


def card_of(name: str) -> Card:
    """The card of this name; a `PDSError` that names those of the same model."""
    if name not in CARDS:
        alike = ", ".join(card for card in CARDS if card.startswith(f"{name.partition('_')[0]}_"))
        raise PDSError(f"the authors published no {name}, only {alike}: choose the model and the data set of one of these")
    return CARDS[name]


PAPERS = {"images": 50_000, "shard_size": 500}


def papers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Family, name and content of each experiment that conf/papers.yaml describes."""
    for family, about in cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / "papers.yaml"))).items():
        groups = {**about["choose"], "filter": "none", "metric": "clean_fid"}
        for row, keys in about["rows"].items():
            chosen = [{f"override /{group}": choice} for group, choice in groups.items()]
            common = {"group": family, **PAPERS, **about.get("set", {}), "sampler": keys["sampler"]}
            yield family, f"{row}_vanilla", {"defaults": chosen, **common}
            filtered = [f"{family}/{row}_vanilla", {"override /filter": about["choose"]["filter"]}]
            yield family, f"{row}_pds", {"defaults": filtered, "filter": keys["filter"]}


def _about(file: Path) -> str:
    """The first comment of an experiment that is no directive of Hydra; empty without one."""
    comments = (line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


@functools.cache
def experiments() -> dict[str, str]:
    """Every choice of experiment=, with one sentence about it."""
    folder = CONF / "experiment"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    told = {name: _about(path) for name, path in files.items()}
    for family, name, _ in papers():
        told[f"{family}/{name}"] = f"A row of the papers, {'with' if name.endswith('_pds') else 'without'} PDS."
    return dict(sorted(told.items()))


@functools.cache
def register() -> None:
    """Make the choices known to Hydra; call before composing."""
    OmegaConf.register_new_resolver("published", published, replace=True)
    OmegaConf.register_new_resolver("sampler_of", sampler_of, replace=True)
    OmegaConf.register_new_resolver("metric_of", metric_of, replace=True)
    OmegaConf.register_new_resolver("unstated", unstated, replace=True)
    store = ConfigStore.instance()
    for group, choices in CHOICES.items():
        for name, choice in choices.items():
            store.store(group=group, name=name, node=node_of(group, choice))
    for family, name, content in papers():
        store.store(group=f"experiment/{family}", name=name, node=content, package="_global_")
    for name, (program, groups, more) in PROGRAMS.items():
        keys: list[tuple[str, Any, Any]] = [(group, Any, MISSING) for group in groups]
        keys += [("published", Any, None)] if groups else []
        keys += [(key, Any, None) if kind is None else (key, kind, field(default_factory=kind)) for key, kind in more.items()]
        node = dataclasses.make_dataclass(program.__name__, [*keys, *fields_of(program)])
        store.store(group="schema", name=name, node=node, package="_global_")
