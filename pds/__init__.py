"""PDS lab: sampling pretrained score-based generative models fast, without retraining.

Everything that a program needs is a name of this module. Each name is imported at its first use: `import pds` alone loads
neither torch nor a network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pds.cards import load as load
    from pds.conditioning import ClassifierFree as ClassifierFree
    from pds.conditioning import ClassifierGuidance as ClassifierGuidance
    from pds.conditioning import Conditional as Conditional
    from pds.conditioning import Guided as Guided
    from pds.data.statistics import DatasetStatistics as DatasetStatistics
    from pds.errors import MissingError as MissingError
    from pds.errors import OptionError as OptionError
    from pds.errors import PDSError as PDSError
    from pds.evaluation.excess_noise import diagnose as diagnose
    from pds.models.scores import Model as Model
    from pds.models.wrap import wrap as wrap
    from pds.pictures import grid as grid
    from pds.preconditioning.filters import NoFilter as NoFilter
    from pds.preconditioning.filters import ParametricFilter as ParametricFilter
    from pds.preconditioning.filters import StatisticsFilter as StatisticsFilter
    from pds.preconditioning.solenoids import FourierSolenoid as FourierSolenoid
    from pds.preconditioning.solenoids import NoSolenoid as NoSolenoid
    from pds.preconditioning.solenoids import ShiftSolenoid as ShiftSolenoid
    from pds.processes.critically_damped import CriticallyDamped as CriticallyDamped
    from pds.processes.discrete import DiscreteVariancePreserving as DiscreteVariancePreserving
    from pds.processes.discrete import beta_schedule as beta_schedule
    from pds.processes.forward import SubVariancePreserving as SubVariancePreserving
    from pds.processes.forward import VarianceExploding as VarianceExploding
    from pds.processes.forward import VariancePreserving as VariancePreserving
    from pds.processes.schedules import LearningRates as LearningRates
    from pds.processes.schedules import ProcessTimes as ProcessTimes
    from pds.remedies import band_correction as band_correction
    from pds.remedies import epsilon_scaling as epsilon_scaling
    from pds.remedies import level_shift as level_shift
    from pds.remedies import seen_noise as seen_noise
    from pds.remedies import time_shift as time_shift
    from pds.samplers.accelerated import DDIM as DDIM
    from pds.samplers.accelerated import AcceleratedDeterministic as AcceleratedDeterministic
    from pds.samplers.accelerated import AcceleratedStochastic as AcceleratedStochastic
    from pds.samplers.adaptive import AdaptiveSDE as AdaptiveSDE
    from pds.samplers.analytic import AnalyticDDIM as AnalyticDDIM
    from pds.samplers.annealed_langevin import AnnealedLangevin as AnnealedLangevin
    from pds.samplers.critically_damped import SSCS as SSCS
    from pds.samplers.critically_damped import CLDEulerMaruyama as CLDEulerMaruyama
    from pds.samplers.critically_damped import CLDFlow as CLDFlow
    from pds.samplers.diffusers_schedulers import DiffusersScheduler as DiffusersScheduler
    from pds.samplers.dpm_solver import DPMSolver as DPMSolver
    from pds.samplers.edm import EDM as EDM
    from pds.samplers.er_sde import ERSDE as ERSDE
    from pds.samplers.lms import LMS as LMS
    from pds.samplers.momentum_langevin import MomentumLangevin as MomentumLangevin
    from pds.samplers.preconditioned_sde import PreconditionedSDE as PreconditionedSDE
    from pds.samplers.predictor_corrector import Ancestral as Ancestral
    from pds.samplers.predictor_corrector import AnnealedLangevinSteps as AnnealedLangevinSteps
    from pds.samplers.predictor_corrector import EulerMaruyama as EulerMaruyama
    from pds.samplers.predictor_corrector import Langevin as Langevin
    from pds.samplers.predictor_corrector import PredictorCorrector as PredictorCorrector
    from pds.samplers.predictor_corrector import ReverseDiffusion as ReverseDiffusion
    from pds.samplers.restart import Restart as Restart
    from pds.samplers.sa_solver import SASolver as SASolver
    from pds.sampling import Samples as Samples
    from pds.sampling import sample as sample
    from pds.sampling import statistics as statistics

__version__ = "0.1.0"

# The same names as above, for Python; a test compares the two.
_HOMES = {
    "pds.cards": "load",
    "pds.conditioning": "ClassifierFree ClassifierGuidance Conditional Guided",
    "pds.data.statistics": "DatasetStatistics",
    "pds.errors": "MissingError OptionError PDSError",
    "pds.evaluation.excess_noise": "diagnose",
    "pds.models.scores": "Model",
    "pds.models.wrap": "wrap",
    "pds.pictures": "grid",
    "pds.preconditioning.filters": "NoFilter ParametricFilter StatisticsFilter",
    "pds.preconditioning.solenoids": "FourierSolenoid NoSolenoid ShiftSolenoid",
    "pds.processes.critically_damped": "CriticallyDamped",
    "pds.processes.discrete": "DiscreteVariancePreserving beta_schedule",
    "pds.processes.forward": "SubVariancePreserving VarianceExploding VariancePreserving",
    "pds.processes.schedules": "LearningRates ProcessTimes",
    "pds.remedies": "band_correction epsilon_scaling level_shift seen_noise time_shift",
    "pds.samplers.accelerated": "AcceleratedDeterministic AcceleratedStochastic DDIM",
    "pds.samplers.adaptive": "AdaptiveSDE",
    "pds.samplers.analytic": "AnalyticDDIM",
    "pds.samplers.annealed_langevin": "AnnealedLangevin",
    "pds.samplers.critically_damped": "CLDEulerMaruyama CLDFlow SSCS",
    "pds.samplers.diffusers_schedulers": "DiffusersScheduler",
    "pds.samplers.dpm_solver": "DPMSolver",
    "pds.samplers.edm": "EDM",
    "pds.samplers.er_sde": "ERSDE",
    "pds.samplers.lms": "LMS",
    "pds.samplers.momentum_langevin": "MomentumLangevin",
    "pds.samplers.preconditioned_sde": "PreconditionedSDE",
    "pds.samplers.predictor_corrector": (
        "Ancestral AnnealedLangevinSteps EulerMaruyama Langevin PredictorCorrector ReverseDiffusion"
    ),
    "pds.samplers.restart": "Restart",
    "pds.samplers.sa_solver": "SASolver",
    "pds.sampling": "Samples sample statistics",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pds' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
