"""The search: trials judged by few images, their leaders by many, the winner confirmed on noise that no trial saw."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial, TrialState

from pds.errors import OptionError, PDSError, UnwritableError, escaped
from pds.evaluation.first_guess import ALPHAS, IMAGES, Look, guess, look_at
from pds.evaluation.frechet import FeatureStatistics, frechet_distance
from pds.evaluation.measures import jackknife_error
from pds.evaluation.panel import Panel
from pds.files import json_digest, locked, read_json, write_json
from pds.generation import DivergedError
from pds.lab import grammar, reference
from pds.lab.cli import prepare, with_trackers
from pds.lab.config import CONF, resolved
from pds.lab.experiment import Experiment, StoppedError, measured
from pds.lab.logs import quieter, spared
from pds.lab.report import write_report
from pds.lab.report.runs import grouped
from pds.lab.runs import essence, group_folder, says_where
from pds.lab.settings import Run, Tune, settings
from pds.lab.tables import key
from pds.lab.terminal import command_line, script, show
from pds.lab.text import markdown_table
from pds.lab.tuning.page import write_page
from pds.lab.tuning.recommendation import Answer, MeasuredSetting, earlier, from_anywhere, sampling_command, write
from pds.lab.tuning.space import PARTS, Kind, kinds_of, most_iterations, part_of, without_statistics
from pds.lab.tuning.study import GUESSED, Study, storage_of
from pds.options import options_of
from pds.progress import progress_bar
from pds.samplers.critically_damped import VelocitySampler
from pds.samplers.preconditioned_sde import PreconditionedSDE

log = logging.getLogger(__name__)

OURS = ("space", *options_of(Tune))
LIMITS = ("max_minutes", "max_evaluations")
"""The options that a first guess without a metric obeys as well, beside the budgets."""
DEFAULT = ["sampler=preconditioned_sde"]
"""The untuned setting, unless another is given."""
PARTS_OF_FIRST = 8
"""Blocks of a trial's first images; their jackknife gives the error."""
ALIKE = 3
"""The search ends after so many trials in a row that fail for the same reason: the cause is not in the trials."""
See = Callable[[np.ndarray], None]
"""A function of the features of the first images."""
POLL = 1.0
"""Seconds between two checks of other processes."""


def tune(arguments: list[str]) -> None:
    """Search, show the result, and write recommendation.yaml and the report.

    Args:
        arguments: keys of `Tune`, of the space, or overrides of every run.
    """
    if told := reference.help_text("tune", arguments):
        show(told)
        return
    _require_no_sweep(arguments)
    arguments = [grammar.typed(argument) for argument in arguments]
    # A space may be given new keys.
    ours = [f"++{a}" if a.startswith("space.") else a for a in arguments if part_of(a) in OURS]
    runs = {key(argument): argument for argument in with_trackers(arguments) if part_of(argument) not in OURS}
    _require_of_runs(runs)
    prepare()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("tune", ours))
        space = config["space"] or {}
        _require_kinds([name for name, kind in space.items() if kind is None], ours)
        command = command_line([sys.argv[0], *arguments])
        searching = [a for a in arguments if part_of(a) in OURS and part_of(a) not in (*LIMITS, "budgets")]
        Tuning(settings(Tune, config), space, list(runs.values()), command, searching).run()


def _require_no_sweep(arguments: Sequence[str]) -> None:
    if sweep := next((argument for argument in arguments if argument in ("-m", "--multirun")), None):
        raise PDSError(f"a search is no sweep: leave {sweep} out; budgets=[10,20] has several budgets")


def _require_of_runs(runs: Mapping[str, str]) -> None:
    """Refuse keys that a search sets itself, and misspelt keys of a search."""
    for name, instead in {"shard_size": "images", "experiment": "model and sampler", "sampler.iterations": "budgets"}.items():
        if name in runs:
            raise PDSError(f"{runs[name]} cannot be given to a search: {instead} says it")
    for name in runs.keys() - {*options_of(Run), *reference.GROUPS}:
        if meant := difflib.get_close_matches(name, OURS, n=1):
            raise PDSError(f"there is no {name} (did you mean {meant[0]}?): the keys of a search are {', '.join(OURS)}")


def _require_kinds(left_out: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse to leave out a kind that the space does not have."""
    known = resolved(compose("tune", [a for a in ours if not a.startswith("++space.")]))["space"] or {}
    if unknown := [name for name in left_out if name not in known]:
        raise PDSError(f"space has no {unknown[0]} to leave out: its kinds are {', '.join(known)}")


@dataclass(eq=False)
class Tuning:
    """One process of a search.

    Attributes:
        options: options of the program.
        space: the space of kinds, as configured.
        given: overrides of every run, and of the default.
        command: the command of the search.
        searching: the given options that a search alone has; a first guess cannot obey them.
    """

    options: Tune
    space: Mapping[str, Any]
    given: list[str]
    command: str
    searching: Sequence[str] = ()
    studies: dict[int, Study] = field(default_factory=dict)  # by budget
    begun: float = field(default_factory=time.monotonic)
    sampled: dict[str, tuple[int, float]] = field(default_factory=dict)  # evaluations and seconds of runs beside the trials
    stopped: str = ""  # the limit that ended the trials

    @cached_property
    def common(self) -> list[str]:
        """Overrides of every run; trackers would take longer than a trial."""
        kept = [override for override in self.given if part_of(override) not in PARTS]
        return kept if any(key(o) == "tracker" for o in kept) else [*kept, "tracker=none"]

    @cached_property
    def default(self) -> list[str]:
        """Overrides of the untuned setting; networks of CLD, whose states no other sampler takes, keep their own sampler."""
        kept = [override for override in self.given if part_of(override) in PARTS]
        if any(key(o) == "sampler" for o in kept):
            return kept
        of_cld = issubclass(get_object(self._model.sampler._target_), VelocitySampler)
        return [*([f"sampler={self._model.hydra.runtime.choices['sampler']}"] if of_cld else DEFAULT), *kept]

    @cached_property
    def in_group(self) -> str:
        """The override that names the group of all its runs."""
        named = next((o for o in self.given if key(o) == "group"), None)
        return named or f"group=tune/{self._model.hydra.runtime.choices['model']}"

    @cached_property
    def _model(self) -> DictConfig:
        """What the model and the data set choose, with Hydra's own record of the choices."""
        return compose("run", self.common, return_hydra_config=True)

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a run."""
        cfg = self._chosen(*(override for override in overrides if "." not in key(override))).copy()
        for override in OverridesParser.create().parse_overrides([o for o in overrides if "." in key(o)]):
            OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
        return cfg

    @functools.cache  # noqa: B019  # a process has one search; its few choices take long to compose
    def _chosen(self, *choices: str) -> DictConfig:
        return compose("run", list({key(o): o for o in [*self.common, self.in_group, *choices]}.values()))

    @cached_property
    def like(self) -> Experiment:
        """The default, whose network, data and metric all runs share."""
        cfg = self._chosen(*self.default).copy()  # whole, for Hydra's own refusals of misspelt keys
        cfg.images = self.options.images
        try:
            return Experiment.build(cfg)
        except OptionError as error:
            if error.name != "sampler.iterations":
                raise
            cfg.sampler.iterations = 2  # each budget finds its own T; a short ladder has no room for the default's
            return Experiment.build(cfg)

    @property
    def metric(self) -> Panel:
        """The measure that the search minimises; None without one."""
        assert self.like.metric is not None
        return self.like.metric

    def distance(self, result: Mapping[str, Any], images: int) -> float:
        """The Fréchet distance of a run."""
        return float(result["metrics"][self.metric.name("fid", images)])

    @cached_property
    def folder(self) -> Path:
        """The folder of the group."""
        cfg = self.composed(self.default)
        return group_folder(cfg.outputs, cfg.group)

    def run(self) -> None:
        """Search and answer."""
        # Settings that cannot be sampled or measured are refused here, before anything is written.
        budgets, o = sorted(set(self.options.budgets)), self.options
        if self.like.metric is None:
            self._require_guess()
            earlier(self.folder, self.recorded, None)
            self._answers({budget: functools.partial(self._guess, budget) for budget in budgets})
            return
        if self.like.sample.sampler.mixes_batch and self.like.batch_size > self._first:
            fix = "it changes the images of this sampler, and a trial begins with a quarter of its images"
            raise OptionError("batch_size", f"must be at most {self._first}: {fix}")
        if "fid" not in self.metric.measures:
            raise OptionError("metric.measures", "must have fid, which a search minimises")
        kinds = {budget: self._kinds(budget) for budget in budgets}
        about = self._claim()
        earlier(self.folder, self.recorded, self.metric.name("fid", o.final))
        storage = storage_of(self.folder, o.storage)
        for budget, of_budget in kinds.items():
            # New kinds, of a package or a version, begin another study; it finds the images that were sampled.
            digest = json_digest({**about, "kinds": list(map(repr, of_budget))})
            guess = functools.partial(self._first_guess, of_budget)
            study = Study(storage, f"{budget}-{digest}", self.folder, of_budget, o.trials, self._first, o.seed, o.search, guess)
            self.studies[budget] = study
        self._search()
        self._answers({budget: functools.partial(self._answer, budget, study) for budget, study in self.studies.items()})

    @property
    def recorded(self) -> list[str]:
        """The overrides of every run that a recommendation has: without the places of files and the tracker."""
        kept = [o for o in self.common if not says_where(o) or ("." in key(o) and not key(o).startswith("tracker"))]
        of_batch = [f"batch_size={self.like.batch_size}"] * self.like.sample.sampler.mixes_batch
        return [*map(from_anywhere, kept), *of_batch]

    def _answers(self, asked: Mapping[int, Callable[[], Answer]]) -> None:
        """Find and tell the answer of each budget; one without an answer hides no other."""
        answers, without = dict[int, Answer](), list[str]()
        for budget, answer in asked.items():
            try:
                answers[budget] = answer()
            except PDSError as error:
                without.append(f"budget {budget}: {error}")
        if answers:
            self._tell(answers)
        if without:
            raise PDSError("; ".join(without))

    def _require_guess(self) -> None:
        """Refuse options that a first guess would have to ignore."""
        if own := next((override for override in self.given if part_of(override) in PARTS), None):
            raise PDSError(
                f"with metric=none a first guess chooses {', '.join(PARTS)} itself: leave {own} out, or give a metric"
            )
        if self.default != DEFAULT:
            raise PDSError(f"a first guess is for scores of images, and {self.like.model.title} is of CLD: give a metric")
        if self.searching:
            raise PDSError(f"with metric=none there are no trials: leave {self.searching[0]} out, or give a metric")

    def _guess(self, budget: int) -> Answer:
        """The settings from the network alone, if nothing can be measured."""
        iterations, nfe = most_iterations(self.composed(DEFAULT), budget, self.like.model, self.like.dataset)
        if limit := self.reached(1, IMAGES * iterations):
            raise PDSError(f"a first guess takes up to {IMAGES * iterations} evaluations, and {limit}")
        if nfe < budget:
            log.info("budget %d: a first guess has %d evaluations, the most that fit", budget, nfe)
        look = self._look(iterations)
        # The filters are made of the same statistics as a shorter walk.
        alphas = (math.inf,) if without_statistics(self.like.model, self.like.dataset) else ALPHAS
        found = guess(self.like.model, look, iterations, alphas=alphas)
        sampler = found.sampler
        run = [*DEFAULT, f"sampler.iterations={iterations}", f"sampler.eta={sampler.eta:.3g}", f"sampler.rho={sampler.rho:g}"]
        run += [f"sampler.weight={sampler.weight}", f"sampler.end={sampler.end:.3g}"]
        run += [] if sampler.start == math.inf else [f"sampler.start={sampler.start:.3g}"]
        run += [] if found.alpha == math.inf else ["filter=statistics", f"filter.alpha={found.alpha:g}"]
        # The mean of images lies in the data range.
        run += ["remedy=level_shift", "remedy.scale=1"]
        self.sampled[f"guess {budget}"] = (look.evaluations, 0.0)
        return Answer(MeasuredSetting(run, nfe), None, "a first guess of 64 images, which nothing has measured")

    def _look(self, iterations: int) -> Look:
        """The facts about the network for a guess; of whole walks alone if the data have no statistics to start a shorter
        one."""
        compiled = self.like.sample.compiled
        # Its batch sizes are not those of the trials, and each batch size is compiled separately.
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            found = look_at(self.like.model, iterations)
        if why := without_statistics(self.like.model, self.like.dataset):
            log.info("the first guess is of whole walks alone: %s", why)
        return replace(found, start=math.inf) if why else found

    def _first_guess(self, kinds: Sequence[Kind]) -> tuple[PreconditionedSDE | None, int]:
        """The guess that the trials of some kinds begin with, and its evaluations; None if it would take a tenth of all."""
        iterations = next((kind.guessed for kind in kinds if kind.guessed and kind.varied), 0)
        if not iterations or IMAGES * iterations > (self.options.max_evaluations or math.inf) / 10:
            return None, 0
        try:
            look = self._look(iterations)
        except PDSError as error:
            log.info("no first guess: %s", error)
            return None, 0
        return guess(self.like.model, look, iterations, alphas=(math.inf,)).sampler, look.evaluations

    def _kinds(self, budget: int) -> list[Kind]:
        """The kinds of one budget, the default first if it is one."""
        kinds, left_out = kinds_of(self.space, budget, self.composed, self.like.model, self.like.dataset)
        for why, names in grouped((why, name) for name, why in left_out.items()).items():
            log.info("budget %d: without %s: %s", budget, ", ".join(names), why)
        with contextlib.suppress(PDSError):
            iterations, nfe = most_iterations(self.composed(self.default), budget, self.like.model, self.like.dataset)
            default = Kind("default", (*self.default, f"sampler.iterations={iterations}"), nfe)
            same = next((kind for kind in kinds if set(kind.run) == set(default.run)), default)
            kinds = [same, *(kind for kind in kinds if kind is not same)]
        for kind in kinds:
            if kind.nfe < budget:
                log.info("budget %d: %s takes %d evaluations, the most that fit", budget, kind.name, kind.nfe)
        return kinds

    def _default(self, budget: int) -> Kind | None:
        """The default of a budget, if it can sample with it."""
        return next((kind for kind in self.studies[budget].kinds if set(self.default) == set(kind.run[:-1])), None)

    def _claim(self) -> dict[str, Any]:
        """Make the group's folder that of this search, or check that it is; return the settings of the search."""
        config = resolved(self.composed(self.default))
        config["fingerprint"] = self.like.fingerprint
        network = {k: v for k, v in essence(config).items() if not k.startswith(PARTS) and k not in ("seed", "images")}
        space = {f"space.{name}": kind for name, kind in self.space.items() if kind is not None}
        ours = {name: getattr(self.options, name) for name in ("images", "final", "seed", "search")}
        # In the form in which JSON returns it.
        mine = json.loads(json.dumps({**network, **space, **ours, "default": self.default}))
        file, what = self.folder / "search.json", "what a search is about"
        with locked(self.folder / "locks" / "search"):
            if not file.exists():
                write_json(file, mine)
            found = read_json(file, {}, what, "delete it and run the same command again")
        different = next((name for name in sorted(found.keys() | mine.keys()) if found.get(name) != mine.get(name)), None)
        if different is not None:
            was, due = (escaped(str(whole.get(different, "its default")), 80) for whole in (found, mine))
            raise PDSError(
                f"{self.folder} holds a search with {escaped(different, 80)}={was}, not {due}: give another group, or delete it"
            )
        return mine

    @property
    def _first(self) -> int:
        return self.options.images // 4

    def cost(self) -> tuple[int, float]:
        """Evaluations and seconds of sampling by all processes that this process knows of."""
        sizes = {TrialState.COMPLETE: self.options.images, TrialState.PRUNED: self._first, TrialState.FAIL: self._first}
        runs: dict[tuple[str, ...], tuple[int, float]] = {}
        guesses = 0
        for study in self.studies.values():
            guesses += study.study.user_attrs.get(GUESSED, 0)
            for trial in study.ended:
                facts = trial.user_attrs
                runs.setdefault(tuple(facts["overrides"]), (sizes[trial.state] * facts["nfe"], facts["seconds"]))
        found = [*runs.values(), *self.sampled.values()]
        return guesses + sum(evaluations for evaluations, _ in found), sum(seconds for _, seconds in found)

    def reached(self, part: float, ahead: int = 0) -> str:
        """The limit that `ahead` more evaluations reach; empty if none. Only `part` of each limit may be used."""
        o = self.options
        if o.max_minutes is not None and time.monotonic() - self.begun >= 60 * part * o.max_minutes:
            return f"max_minutes={o.max_minutes:g} came first"
        if o.max_evaluations is not None and self.cost()[0] + ahead > part * o.max_evaluations:
            return f"max_evaluations={o.max_evaluations} came first"
        return ""

    def _search(self) -> None:
        """One trial of each budget after the other, as long as there are any."""
        with progress_bar(desc="trials", total=self.options.trials * len(self.studies), unit="trial", leave=None) as bar:

            def refresh() -> None:
                best = {budget: study.best[0].value for budget, study in self.studies.items() if study.best}
                bar.set_postfix({f"best at {budget}": f"{value:.4g}" for budget, value in best.items()}, refresh=False)
                bar.n = sum(len(study.ended) for study in self.studies.values())
                bar.refresh()

            refresh()
            bar.initial = bar.n  # the pace is that of this process
            reasons: list[str] = []
            unfinished = dict(self.studies)
            while unfinished:
                idle = True
                for budget, study in list(unfinished.items()):
                    self.stopped = self.reached(0.5, self.options.images * max(kind.nfe for kind in study.kinds))
                    if self.stopped:
                        return
                    with study.next() as found:
                        if found is not None:
                            reasons.append(self._try(study, *found))
                            idle = False
                    refresh()
                    if found is None and not study.read(TrialState.RUNNING):
                        del unfinished[budget]
                    if reasons[-1:] != [""] and len(reasons) >= ALIKE and len(set(reasons[-ALIKE:])) == 1:
                        raise PDSError(f"the last {ALIKE} trials failed alike: {reasons[-1]}")
                if idle and unfinished:  # other processes run the last trials, and may be killed
                    time.sleep(POLL)

    def _try(self, study: Study, trial: Trial, overrides: list[str]) -> str:
        """Measure one trial, and report it to the study; return the reason of a failure."""
        o, begun, reason = self.options, time.monotonic(), ""

        def look(features: np.ndarray) -> None:
            value, error = self._first_distance(features)
            if not math.isfinite(value) or study.poor(trial, value, error):
                raise StoppedError(f"{value:.4g} after {self._first} images, worse than half the trials beyond its error")

        state, facts, told = TrialState.FAIL, {}, ""
        try:
            result = self.measured(overrides, o.images, o.seed, look)
            value = self.distance(result, o.images)
            facts = {"run": result["name"], "label": f"{result['sampler']}, {result['label']}"}
            state, told = TrialState.COMPLETE, f"{value:.4g}"
        except (StoppedError, DivergedError) as error:
            state, value, told = TrialState.PRUNED, None, str(error)
            facts = {"reason": told}
        except UnwritableError:  # the trial is as it was, and the same command continues it
            raise
        except Exception as error:  # of any other kind: the other trials go on
            value, reason = None, str(error) if isinstance(error, (PDSError, OSError)) else f"{type(error).__name__}: {error}"
            log.warning("trial %d failed: %s", trial.number, reason, exc_info=not isinstance(error, (PDSError, OSError)))
            facts, told = {"reason": reason}, reason
        study.tell(trial, state, time.monotonic() - begun, value, **facts)
        log.info("trial %d, %s: %s", trial.number, " ".join(overrides), told)
        return reason

    def _first_distance(self, features: np.ndarray) -> tuple[float, float]:
        """The Fréchet distance of a trial's first images, and its error; infinite if the images are too few for an error."""
        reference, block_of = self.metric.reference.statistics, np.arange(len(features)) % PARTS_OF_FIRST
        whole = FeatureStatistics.from_features(features)
        if len(features) < 2 * PARTS_OF_FIRST:
            return frechet_distance(whole, reference), math.inf
        parts = (FeatureStatistics.from_features(features[block_of != block]) for block in range(PARTS_OF_FIRST))
        return frechet_distance(whole, reference), jackknife_error([frechet_distance(part, reference) for part in parts])

    def measured(self, overrides: Sequence[str], images: int, seed: int, look: See | None = None) -> dict[str, Any]:
        """The result of one setting, its missing images sampled by this process."""
        here = [*overrides, f"images={images}", f"seed={seed}", f"shard_size={self._first}"]
        cfg = self.composed(overrides)
        cfg.images, cfg.seed, cfg.shard_size = images, seed, self._first
        named = [override for override in [*self.common, *here] if not key(override).startswith("tracker")]
        command = [script("run.py"), *named, self.in_group]
        # Two trials may be one setting.
        digest = json_digest({"overrides": named})
        with locked(self.folder / "locks" / f"run-{digest}"), quieter("pds.generation", "pds.lab.experiment"):
            return measured(cfg, named, command, self.like, look)

    def _each(
        self, jobs: Sequence[tuple[Sequence[str], int, int, int]], why: list[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, result) of each job (overrides, evaluations, seed, present images), shared with other processes."""
        waiting = dict(enumerate(jobs))
        while waiting:
            before = len(waiting)
            for number, (overrides, nfe, seed, there) in list(waiting.items()):
                said = json_digest({"overrides": [*overrides], "seed": seed})
                known = said in self.sampled
                evaluations = nfe * (self.options.final - there)
                if not known and (limit := self.reached(1, evaluations)):
                    why.append(limit)
                    return
                with locked(self.folder / "locks" / said, wait=False) as mine:
                    if not mine:
                        continue
                    del waiting[number]
                    try:
                        result = self.measured(overrides, self.options.final, seed)
                    except (PDSError, OSError, RuntimeError) as error:
                        log.warning("%s, seed %d, could not be measured: %s", " ".join(overrides), seed, error)
                        continue
                self.sampled[said] = (evaluations, result["wall_clock"]["seconds"])
                yield number, result
            if len(waiting) == before:
                time.sleep(POLL)

    def _answer(self, budget: int, study: Study) -> Answer:
        """The answer of one budget."""
        o, why = self.options, list[str]()
        best, default = study.best, self._default(budget)
        leaders = best[: o.leaders]
        # With the same number of images, so that the winner is no worse than the default on the noise of the trials.
        leaders += [t for t in best[o.leaders :] if default and t.user_attrs["overrides"] == [*default.run]]
        if not leaders:
            ended = [trial.user_attrs.get("reason", "") for trial in study.ended]
            raise PDSError(f"no trial was measured: {next(filter(None, ended), self.stopped or 'none began')}")
        jobs = [(t.user_attrs["overrides"], t.user_attrs["nfe"], o.seed, o.images) for t in leaders]
        told = {n: self.distance(result, o.final) for n, result in self._each(jobs, why)}
        first = leaders[min(told, key=lambda n: told[n], default=0)]
        log.info("budget %d: %s leads", budget, " ".join(first.user_attrs["overrides"]))
        winner = MeasuredSetting(list(first.user_attrs["overrides"]), first.user_attrs["nfe"])
        pair = [winner]
        if default is not None and list(default.run) != winner.run:
            pair.append(MeasuredSetting(list(default.run), default.nfe))
        jobs = [(one.run, one.nfe, seed, 0) for seed in o.seeds for one in pair]
        for number, result in sorted(self._each(jobs, why), key=lambda found: found[0]):  # another process may come first
            one, seed = pair[number % len(pair)], jobs[number][2]
            pair[number % len(pair)] = replace(
                one,
                distances={**one.distances, str(seed): self.distance(result, o.final)},
                runs={**one.runs, str(seed): result["name"]},
                left_out={**one.left_out, str(seed): result.get("left_out", {}).get(self.metric.name("fid", o.final), ())},
            )
        beside = None if default is None else pair[-1]
        return Answer(pair[0], beside, why[0] if why else "")

    def _tell(self, answers: Mapping[int, Answer]) -> None:
        """Write the recommendation and the report, and show both."""
        rows = [["budget", "evaluations", "recommended", "distance", "default", "verdict"]]
        for budget, answer in answers.items():
            best = answer.recommended
            beside = "" if answer.default is None else answer.default.spread
            rows.append([str(budget), str(best.nfe), " ".join(best.run), best.spread, beside, answer.verdict])
        metric = None if self.like.metric is None else self.metric.name("fid", self.options.final)
        with locked(self.folder / "locks" / "recommendation"):  # another search may add other budgets at this moment
            path = write(self.folder, self.recorded, metric, answers, self.command)
        evaluations, seconds = self.cost()
        show(f"\n{markdown_table(rows, [True, True, False, True, True, False])}\n")
        show(f"cost     {evaluations:,} evaluations, {seconds / 60:.1f} minutes")
        show(f"run it   {sampling_command(path, next(iter(answers)))}")
        if metric is None:
            return
        with spared("the report"):
            about = {"command": self.command, "metric": metric, "images": self.options.images}
            about |= {"evaluations": evaluations, "seconds": seconds}
            page = write_page(self.folder, about, self.studies, answers)
            show(f"report   {page}\nruns     {write_report(self.folder)}")
