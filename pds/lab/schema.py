"""Types of every configuration key, so that a misspelt key or a value of the wrong type fails at composition.

The files in conf/ hold the values and say what each key means; `???` there is a key that has no default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# OmegaConf reads these annotations at run time: Any stands for a group, which its own schema types.


@dataclass
class Sweep:
    name: str = "runs"
    where: list[str] = field(default_factory=list)  # of the keys swept over, those that say where and how fast
    number: int | None = None
    points: int | None = None
    since: float | None = None


@dataclass
class Run:
    model: Any = MISSING
    dataset: Any = MISSING
    filter: Any = MISSING
    solenoid: Any = MISSING
    sampler: Any = MISSING
    metric: Any = MISSING
    tracker: Any = MISSING
    published: Any = None
    sweep: Sweep = field(default_factory=Sweep)
    group: str = MISSING
    images: int = MISSING
    seed: int = MISSING
    shard_size: int = MISSING
    batch_size: int = MISSING
    bf16: bool = MISSING
    tf32: bool | None = None
    compile: bool = MISSING
    device: str = MISSING
    threads: int | None = None
    outputs: str = MISSING


@dataclass
class Train:
    model: Any = MISSING
    dataset: Any = MISSING
    trainer: Any = MISSING
    published: Any = None
    name: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    threads: int | None = None
    outputs: str = MISSING


@dataclass
class Benchmark:
    model: Any = MISSING
    dataset: Any = MISSING
    filter: Any = MISSING
    solenoid: Any = MISSING
    sampler: Any = MISSING
    published: Any = None
    batch_size: int = MISSING
    repeats: int = MISSING
    bf16: bool = MISSING
    tf32: bool | None = None
    compile: bool = MISSING
    device: str = MISSING
    threads: int | None = None
    outputs: str = MISSING


@dataclass
class Gaussian:
    model: Any = MISSING
    dataset: Any = MISSING
    filter: Any = MISSING
    solenoid: Any = MISSING
    sampler: Any = MISSING
    published: Any = None
    iterations: list[int] = MISSING
    vary: str = MISSING
    over: list[float] = MISSING


@dataclass
class ExcessNoise:
    model: Any = MISSING
    dataset: Any = MISSING
    filter: Any = MISSING
    sampler: Any = MISSING
    published: Any = None
    iterations: list[int] = MISSING
    images: int = MISSING
    seed: int = MISSING
    device: str = MISSING
    threads: int | None = None
    outputs: str = MISSING


@dataclass
class SmallForm:
    another_model: bool = True  # than the printed one
    base: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)  # of the table's own rows, where it has no cells


@dataclass
class Table:
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


@dataclass
class Reproduce:
    table: Table = field(default_factory=Table)
    small: bool = MISSING
    seeds: list[int] = MISSING
    images: int | None = None
    outputs: str = MISSING
    checkpoints: str = MISSING
    origins: dict[str, str] = MISSING


@dataclass
class Target:
    _target_: str = MISSING


@dataclass
class NCSN(Target):
    shape: list[int] = MISSING
    width: int = MISSING
    sigma_begin: float = MISSING
    sigma_end: float = MISSING
    levels: int = MISSING
    checkpoint: str | None = MISSING
    rescale: bool = MISSING


@dataclass
class NCSNv2(Target):
    shape: list[int] = MISSING
    width: int = MISSING
    depth: str = MISSING
    sigma_begin: float = MISSING
    sigma_end: float = MISSING
    levels: int = MISSING
    checkpoint: str | None = MISSING
    rescale: bool = MISSING


@dataclass
class VE(Target):
    sigma_min: float = MISSING
    sigma_max: float = MISSING
    levels: int = MISSING


@dataclass
class VP(Target):
    beta_min: float = MISSING
    beta_max: float = MISSING
    levels: int = MISSING


@dataclass
class NCSNpp(Target):
    shape: list[int] = MISSING
    process: Any = MISSING
    width: int = MISSING
    multipliers: list[int] = MISSING
    blocks: int = MISSING
    attention: list[int] = MISSING
    embedding: str = MISSING
    block: str = MISSING
    fir: bool = MISSING
    resample_conv: bool = MISSING
    output: str = MISSING
    input: str = MISSING
    combine: str = MISSING
    skip_rescale: bool = MISSING
    scale_by_sigma: bool = MISSING
    centred: bool = MISSING
    dropout: float = MISSING
    fourier_scale: float = MISSING
    checkpoint: str | None = MISSING


@dataclass
class UNet2D(Target):
    shape: list[int] = MISSING
    checkpoint: str | None = MISSING
    schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    levels: int | None = None
    prediction: str | None = None


@dataclass
class Own(Target):
    make: str = MISSING
    predicts: str = MISSING
    process: Any = MISSING
    shape: list[int] = MISSING
    data_range: list[float] = MISSING
    label: str | None = None
    checkpoint: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class SplitSource(Target):
    _partial_: bool = MISSING
    root: str = MISSING
    split: str = MISSING


@dataclass
class FolderSource(Target):
    _partial_: bool = MISSING
    root: str = MISSING
    shape: list[int] = MISSING
    name: str = MISSING


@dataclass
class Dataset(Target):
    name: str = MISSING
    shape: list[int] = MISSING
    statistics_file: str | None = None
    statistics_images: int = MISSING
    reference: Any = MISSING
    source: SplitSource = field(default_factory=SplitSource)


@dataclass
class Folder(Target):
    name: str = MISSING
    shape: list[int] = MISSING
    statistics_file: str | None = None
    statistics_images: int = MISSING
    reference: Any = MISSING
    source: FolderSource = field(default_factory=FolderSource)


@dataclass
class FormOfDataset(Dataset):
    resolution: int = MISSING
    preprocessing: str = MISSING


@dataclass
class LSUN(FormOfDataset):
    category: str = MISSING


@dataclass
class PublishedReference(Target):
    name: str = MISSING
    resolution: int = MISSING
    split: str = MISSING


@dataclass
class MadeReference(Target):
    images: int = MISSING


@dataclass
class PublishedOrMade(Target):
    name: str = MISSING
    resolution: int = MISSING
    split: str | None = None
    images: int = MISSING


@dataclass
class Parametric(Target):
    r: float = MISSING
    lam: float = MISSING
    region: str = MISSING


@dataclass
class AlphaReference:
    alpha: float | None = None
    iterations: int | None = None


@dataclass
class Statistics(Target):
    alpha: Any = MISSING  # a number or "auto"
    pixels: str = MISSING
    iterations: int = MISSING
    reference: AlphaReference = field(default_factory=AlphaReference)


@dataclass
class FourierSolenoid(Target):
    form: str = MISSING
    omega: float = MISSING


@dataclass
class ShiftSolenoid(Target):
    operator: str = MISSING
    omega: float = MISSING


@dataclass
class AnnealedLangevin(Target):
    iterations: int = MISSING
    step_size: float = MISSING
    steps_per_level: int | None = None
    denoise: bool = MISSING


@dataclass
class MomentumLangevin(AnnealedLangevin):
    gamma: Any = MISSING  # a number or several


@dataclass
class PredictorCorrector(Target):
    iterations: int = MISSING
    predictor: Any = MISSING
    corrector: Any = MISSING
    end: float | None = None
    denoise: bool = MISSING
    precondition: str = MISSING


@dataclass
class KarrasLevels(Target):
    iterations: int = MISSING
    order: int = MISSING
    rho: float = MISSING


@dataclass
class EDM(KarrasLevels):
    S_churn: float = MISSING
    S_min: float = MISSING
    S_max: float = MISSING
    S_noise: float = MISSING


@dataclass
class DPMSolver(KarrasLevels):
    eta: float = MISSING


@dataclass
class PreconditionedSDE(DPMSolver):
    weight: str = MISSING
    eta_from: float = MISSING
    eta_to: float = MISSING
    prior_norm: str = MISSING


@dataclass
class AdaptiveSDE(Target):
    iterations: int = MISSING
    eps_rel: float = MISSING
    eps_abs: float = MISSING


@dataclass
class DiffusersScheduler(Target):
    iterations: int = MISSING
    scheduler: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class AcceleratedDeterministic(Target):
    iterations: int = MISSING
    schedule: Any = MISSING
    denoise: bool = MISSING


@dataclass
class DDIM(AcceleratedDeterministic):
    order: int = MISSING


@dataclass
class AnalyticDDIM(AcceleratedDeterministic):
    training_images: int = MISSING


@dataclass
class AcceleratedStochastic(AcceleratedDeterministic):
    second_noise: str = MISSING


@dataclass
class ProcessTimes(Target):
    end: float | None = None


@dataclass
class LearningRates(Target):
    c0: float | None = None
    c1: float | None = None


@dataclass
class Discretisation(Target):
    probability_flow: bool = MISSING


@dataclass
class LangevinSteps(Target):
    snr: float = MISSING
    steps: int = MISSING


@dataclass
class Langevin(LangevinSteps):
    norms: str = MISSING


@dataclass
class CleanFID(Target):
    cache: str | None = None


@dataclass
class Wandb(Target):
    project: str = MISSING
    entity: str | None = None
    mode: str = MISSING
    timeout: float = MISSING


@dataclass
class Trainer(Target):
    iterations: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    warmup: int = MISSING
    ema_decay: float = MISSING
    seed: int = MISSING
    checkpoint_every: int = MISSING
    bf16: bool = MISSING
    compile: bool = MISSING
    flip: bool = MISSING


SCHEMAS: dict[str, dict[str, type]] = {
    "schema": {
        "run": Run,
        "train": Train,
        "benchmark": Benchmark,
        "gaussian": Gaussian,
        "excess_noise": ExcessNoise,
        "reproduce": Reproduce,
    },
    "schema/model": {"ncsn": NCSN, "ncsnv2": NCSNv2, "ncsnpp": NCSNpp, "unet2d": UNet2D, "own": Own},
    "schema/model/process": {"ve": VE, "vp": VP},
    "schema/dataset": {"dataset": Dataset, "folder": Folder, "form": FormOfDataset, "lsun": LSUN},
    "schema/dataset/reference": {
        "published": PublishedReference,
        "made": MadeReference,
        "published_or_made": PublishedOrMade,
    },
    "schema/filter": {"none": Target, "parametric": Parametric, "statistics": Statistics},
    "schema/solenoid": {"none": Target, "fft": FourierSolenoid, "shift": ShiftSolenoid},
    "schema/sampler": {
        "annealed_langevin": AnnealedLangevin,
        "mild": MomentumLangevin,
        "predictor_corrector": PredictorCorrector,
        "edm": EDM,
        "dpm_solver": DPMSolver,
        "preconditioned_sde": PreconditionedSDE,
        "adaptive": AdaptiveSDE,
        "ddim": DDIM,
        "analytic_ddim": AnalyticDDIM,
        "accelerated_deterministic": AcceleratedDeterministic,
        "accelerated_stochastic": AcceleratedStochastic,
        "diffusers": DiffusersScheduler,
    },
    "schema/sampler/schedule": {"process": ProcessTimes, "learning_rates": LearningRates},
    "schema/sampler/predictor": {
        "reverse_diffusion": Discretisation,
        "euler_maruyama": Discretisation,
        "ancestral": Target,
        "none": Target,
    },
    "schema/sampler/corrector": {"langevin": Langevin, "annealed_langevin": LangevinSteps, "none": Target},
    "schema/metric": {"none": Target, "mnist_classifier": Target, "cifar10_classifier": Target, "clean_fid": CleanFID},
    "schema/tracker": {"none": Target, "wandb": Wandb},
    "schema/trainer": {"trainer": Trainer},
}


def register() -> None:
    """Make the schemas known to Hydra; call before composing."""
    store = ConfigStore.instance()
    for group, nodes in SCHEMAS.items():
        for name, node in nodes.items():
            store.store(group=group, name=name, node=node, package="_global_" if group == "schema" else None)
