"""The space of a search: kinds of samplers, and the options of each that vary, as their signatures say."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin

import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from optuna.trial import Trial

from pds.conditioning import ClassifierFree, Guidance
from pds.data.dataset import Dataset
from pds.dotted import dotted
from pds.errors import OptionError, PDSError, spelled
from pds.lab.config import build, keyed
from pds.lab.guessed import without_auto
from pds.lab.tables import key
from pds.models.scores import Model
from pds.noise import ImageNoise
from pds.options import Search, fitted, options_of, shown
from pds.preconditioning.filters import NoFilter
from pds.preconditioning.preconditioner import Identity, build_preconditioner
from pds.samplers.preconditioned_sde import PreconditionedSDE
from pds.samplers.sampler import Sampler
from pds.score import CountedScore

PARTS = ("sampler", "filter", "solenoid", "remedy")
"""The groups that a search varies; all else is common to its runs."""

Compose = Callable[[list[str]], DictConfig]
"""The configuration of a run with these overrides beside the common ones."""


@dataclass(frozen=True)
class Varied:
    """One option that varies.

    Attributes:
        key: its key in the configuration.
        tried: its numbers, or its choices.
        whole: whether it is a whole number.
        start: its value if nothing varies.
    """

    key: str
    tried: Search | tuple[Any, ...]
    whole: bool
    start: Any

    def suggested(self, trial: Trial, kind: str) -> Any:
        """Its value in a trial of a kind."""
        name = f"{kind}.{self.key}"
        if isinstance(self.tried, tuple):
            return trial.suggest_categorical(name, self.tried)
        low, high, log = self.tried.low, self.tried.high, self.tried.log
        if self.whole:
            return trial.suggest_int(name, int(low), int(high), log=log)
        return trial.suggest_float(name, low, high, log=log)

    def nearest(self, value: Any) -> Any:
        """The tried value that is nearest to a value; the start for a choice that is not tried."""
        if isinstance(self.tried, tuple):
            return value if value in self.tried else self.start
        return min(max(value, self.tried.low), self.tried.high) if isinstance(value, (int, float)) else value

    @property
    def starts(self) -> bool:
        """Whether the start is tried at all: a noise level beyond all of the process is the last of them."""
        if isinstance(self.tried, tuple):
            return self.start in self.tried
        return isinstance(self.start, (int, float)) and (self.tried.level or self.nearest(self.start) == self.start)

    def override(self, value: Any) -> list[str]:
        """The override that sets it; none for its start, so that equal settings are one run."""
        short = float(f"{value:.3g}") if isinstance(value, float) else value
        same = short == self.start or (self.starts and value == self.nearest(self.start))
        return [] if same else [f"{self.key}={spelled(short)}"]


@dataclass(frozen=True)
class Kind:
    """One kind of sampler at one budget.

    Attributes:
        name: its name in the space.
        run: its overrides, with the iterations.
        nfe: score evaluations an image.
        varied: its options that vary.
        guessed: T for a first guess of these options; 0 if no guess is known.
    """

    name: str
    run: tuple[str, ...]
    nfe: int
    varied: tuple[Varied, ...] = ()
    guessed: int = 0

    @property
    def starts(self) -> dict[str, Any]:
        """Parameters of its first trial, as `suggested` names them."""
        given = {f"{self.name}.{one.key}": one.nearest(one.start) for one in self.varied if one.starts}
        return {"kind": self.name, **given} if self.varied else {}

    def of_guess(self, sampler: PreconditionedSDE) -> dict[str, Any]:
        """Parameters of a trial of the first guess; None if it has no guess for this kind."""
        found = {f"sampler.{name}": getattr(sampler, name) for name in ("rho", "weight", "eta", "start", "end")}
        mine = {f"{self.name}.{one.key}": one.nearest(found[one.key]) for one in self.varied if one.key in found}
        return {**self.starts, **mine} if self.guessed and mine else {}

    def suggested(self, trial: Trial) -> list[str]:
        """The overrides of a trial of this kind."""
        found = (override for one in self.varied for override in one.override(one.suggested(trial, self.name)))
        return list({key(override): override for override in [*self.run, *found]}.values())


def kinds_of(
    space: Mapping[str, Any], budget: int, compose: Compose, model: Model, dataset: Dataset
) -> tuple[list[Kind], dict[str, str]]:
    """The kinds of a space that fit a budget, and the reason why each of the others does not.

    Args:
        space: `run` and `vary` of each kind by name; None leaves a kind out.
        budget: evaluations an image; each kind takes the most iterations that fit.
        compose: see `Compose`.
        model, dataset: the model and the data set of the search.

    Raises:
        PDSError: the space is wrong, empty, or holds nothing that can sample this model with this budget.
    """
    kept = {name: kind for name, kind in space.items() if kind is not None}
    if not kept:
        raise PDSError("space has no kind of sampler left: leave at least one in, or give space=default")
    kinds, left_out = [], {}
    for name, about in kept.items():
        if not isinstance(about, Mapping) or not isinstance(about.get("run"), list) or about.keys() - {"run", "vary"}:
            raise PDSError(f"space.{name} is no kind of sampler: give {{run: [overrides], vary: {{option: values}}}}, or null")
        wrong = next((override for override in about["run"] if part_of(override) not in PARTS), None)
        if wrong is not None:
            raise OptionError(f"space.{name}.run", f"must set {', '.join(PARTS)} alone, got {shown(wrong)}")
        cfg = compose(about["run"])
        try:
            iterations, nfe = most_iterations(cfg, budget, model, dataset)
        except PDSError as error:
            left_out[name] = str(error)
            continue
        varied = tuple(_varied(name, about, cfg, model))
        if any(one.key == "sampler.start" for one in varied) and (why := without_statistics(model, dataset)):
            varied = tuple(one for one in varied if one.key != "sampler.start")
            left_out[f"sampler.start of {name}"] = why
        alone = get_object(cfg.sampler._target_) is PreconditionedSDE and get_object(cfg.filter._target_) is NoFilter
        guessed = iterations if alone else 0
        kinds.append(Kind(name, (*about["run"], f"sampler.iterations={iterations}"), nfe, varied, guessed))
    if not kinds:
        raise PDSError(f"nothing in the space can sample with budget={budget}: {next(iter(left_out.values()))}")
    return kinds, left_out


def without_statistics(model: Model, dataset: Dataset) -> str:
    """The reason why there are no statistics of the data to start a shorter walk from; empty if there are."""
    try:
        shape = dataset.statistics.shape
    except PDSError as error:
        return str(error)
    return "" if tuple(shape) == tuple(model.shape) else f"its statistics are of images of the shape {tuple(shape)}"


def part_of(override: str) -> str:
    """The group of an override."""
    return key(override).split(".")[0].split("/")[0]


def most_iterations(cfg: DictConfig, budget: int, model: Model, dataset: Dataset) -> tuple[int, int]:
    """The most iterations of a composed sampler that take at most `budget` evaluations an image, and those evaluations.

    Raises:
        PDSError: there is no such number: the sampler chooses its evaluations, or does not fit the process.
    """
    guidance: Guidance | None = None if cfg.guidance is None else build(cfg.guidance)
    sampler_node, filter_node = without_auto(cfg)
    with keyed(cfg.sampler):
        sampler = build(sampler_node).with_statistics(lambda: dataset.statistics, model.data_range, model.process)
        if sampler.nfe is None:
            raise PDSError(f"{sampler.title} chooses its evaluations itself")
    filter, solenoid = build(filter_node), build(cfg.solenoid)
    with keyed(cfg.filter):
        P = build_preconditioner(filter, solenoid, model.shape, lambda: dataset.statistics)
    if cfg.remedy is not None:
        build(cfg.remedy, model, dataset)

    def evaluations(iterations: int) -> int:
        try:
            return _evaluations(replace(sampler, iterations=iterations), guidance, model)
        except PDSError:  # it needs more iterations
            return 0

    with keyed(cfg.sampler):
        refusal = None
        for iterations in range(bisect_right(range(1, budget + 1), budget, key=evaluations), 0, -1):
            try:
                shorter = replace(sampler, iterations=iterations)
                shorter.check(shorter.levels(model.process), P)
                return iterations, evaluations(iterations)
            except PDSError as error:
                refusal = refusal or error
        raise refusal or PDSError(f"an iteration takes more than {budget} evaluations")


def _evaluations(sampler: Sampler[Any], guidance: Guidance | None, model: Model) -> int:
    """Evaluations of the network an image, by their counter: classifier-free guidance takes two where it acts."""
    assert sampler.nfe is not None
    if not isinstance(guidance, ClassifierFree) or guidance.scale in (0, 1):
        return sampler.nfe
    if tuple(guidance.interval) == ClassifierFree.interval:
        return 2 * sampler.nfe
    # Only the sampler knows its levels, so it samples one pixel here.
    counted = CountedScore(lambda x, sigma, *labels: -x[:, -1:])
    noise = ImageNoise(0, torch.zeros(1, dtype=torch.long), (1, 1, 1))
    guided = guidance(counted, torch.zeros(1, dtype=torch.long), model.classes)
    try:
        sampler(guided, torch.zeros(1, model.score.halves, 1, 1), sampler.levels(model.process), Identity(), noise)
    except PDSError:  # the process has fewer levels
        return 2 * sampler.nfe
    return counted.nfe


def _varied(name: str, about: Mapping[str, Any], cfg: DictConfig, model: Model) -> Iterator[Varied]:
    fixed, given = {key(override) for override in about["run"]}, dotted(about.get("vary") or {})
    for path, annotation, value in _options(cfg):
        stated = _search(annotation)
        tried = given.pop(path, None if path in fixed else stated)
        if tried is True and stated is not None:
            tried = stated
        if tried is not None and not isinstance(tried, Search):
            tried = _asked(f"space.{name}.vary.{path}", tried, annotation, stated)
        if isinstance(tried, Search):
            tried = _choices(annotation) or _cut(tried, model)
        if tried is not None:
            yield Varied(path, tried, _is_whole(annotation), value)
    if given:
        raise PDSError(
            f"space.{name}.vary.{next(iter(given))} is no option of {' '.join(about['run'])}: run.py --help lists them"
        )


def _cut(tried: Search, model: Model) -> Search | None:
    """The ends of noise levels in pixel units of the model, within those of the process; None where nothing is between them."""
    if not tried.level:
        return tried
    (black, white), ladder = model.data_range, model.process.ladder
    low, high = max(tried.low * abs(white - black), ladder[-1].item()), min(tried.high * abs(white - black), ladder[0].item())
    return replace(tried, low=low, high=high) if low < high else None


def _options(cfg: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Key, annotation and value of each option of the parts that vary."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
        if not isinstance(node, DictConfig) or "_target_" not in node:
            return
        for name, option in options_of(get_object(node._target_)).items():
            if name in node and isinstance(node._get_node(name), DictConfig):
                yield from walk(node[name], f"{path}.{name}")
            elif name in node:
                yield f"{path}.{name}", option.annotation, node[name]

    for part in PARTS:
        yield from walk(cfg[part], part)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all annotations inside it, with their types."""
    yield annotation
    for part in get_args(annotation) if get_origin(annotation) is not None else ():
        yield from _parts(part)


def _search(annotation: Any) -> Search | None:
    return next((part for part in _parts(annotation) if isinstance(part, Search)), None)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The choices of a `Literal`; none for an option that may also be a number."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    values = get_args(inner)
    return values if values and all(isinstance(value, (str, int)) for value in values) else ()


def _is_whole(annotation: Any) -> bool:
    return int in _parts(annotation) and float not in _parts(annotation)


def _asked(path: str, given: Any, annotation: Any, stated: Search | None) -> Search | tuple[Any, ...]:
    """The values of an option to try, from a space."""
    if not isinstance(given, list) or len(given) < 2:
        raise OptionError(path, f"must be [lowest,highest], a list of choices, or null, got {shown(given)}")
    for value in given:
        fitted(path, value, annotation)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
    if not numbers or len(given) > 2 or _choices(annotation):
        return tuple(given)
    low, high = given
    if not (low < high and math.isfinite(high)):
        raise OptionError(path, f"must have a lowest value below its highest, got {shown(given)}")
    stated = stated or Search()
    return replace(stated, low=low, high=high, log=stated.log and low > 0, level=False)
