"""The trials of one budget, kept by Optuna: in a file of the group's folder, or in a database.

Each process asks for its next trial. A lock marks the trial as taken, and ends with the process. The next process that asks
continues the trial of a killed one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from pds.errors import MissingError, PDSError, first_line
from pds.files import MOST_TEXT, locked, open_regular, reading
from pds.lab.tracking import cut_half_line
from pds.lab.tuning.space import Kind
from pds.samplers.preconditioned_sde import PreconditionedSDE

optuna.logging.set_verbosity(optuna.logging.WARNING)
# A continued trial reports its value again.
warnings.filterwarnings("ignore", message="The reported value is ignored")

ERRORS = 2.0
"""A trial ends if its first images are worse than the median trial's by so many standard errors."""
DRAWN = 4
"""Random trials after the untuned kinds; the estimator begins with their values."""
UNPRUNED = 4
"""The first trials, which go on in any case."""
GUESSED = "evaluations of the first guess"
"""An attribute of a study that has its first trials."""


class _JournalLock(JournalFileOpenLock):
    """The lock of a journal, which ends with its process; the half line of a killed process is cut off."""

    def __init__(self, journal: Path, lock: Path) -> None:
        self.journal, self.lock = journal, lock
        self.held = contextlib.ExitStack()

    def acquire(self) -> bool:
        self.held.enter_context(locked(self.lock))
        if self.journal.exists():
            with open(self.journal, "rb+") as file:
                cut_half_line(file)
        return True

    def release(self) -> None:
        self.held.close()


def storage_of(folder: Path, url: str | None) -> BaseStorage:
    """The storage of a group's studies: the journal in its folder, or a database.

    Raises:
        PDSError: the database cannot be used, or the journal is damaged.
    """
    if url is not None:
        try:
            with locked(folder / "locks" / "storage"):  # two processes at once cannot make its tables
                return get_storage(url)
        except Exception as error:  # a driver may raise anything
            raise PDSError(f"storage={url} cannot be used: {first_line(error)}") from error
    journal, lock = folder / "study.journal", folder / "locks" / "journal"
    folder.mkdir(parents=True, exist_ok=True)
    with reading(journal, "the journal of a search", "delete it: the same command finds the images that were sampled"):
        with contextlib.suppress(MissingError):
            open_regular(journal, MOST_TEXT).close()
        return JournalStorage(JournalFileBackend(str(journal), _JournalLock(journal, lock)))


@dataclass(frozen=True)
class Study:
    """The trials of one budget.

    Attributes:
        storage: the storage of the trials.
        name: name of the study in it.
        folder: folder of the group; the locks of running trials lie in it.
        kinds: kinds to try. The first trials are these, untuned, with the first guess after the first of them.
        trials: number of trials.
        first: number of first images; a trial is judged by them first.
        seed: seed of the draws.
        search: "tpe", a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), or "random".
        guess: makes a first guess, and returns its evaluations; called once.
    """

    storage: BaseStorage
    name: str
    folder: Path
    kinds: Sequence[Kind]
    trials: int
    first: int
    seed: int
    search: Literal["tpe", "random"]
    guess: Callable[[], tuple[PreconditionedSDE | None, int]] = lambda: (None, 0)

    @cached_property
    def study(self) -> optuna.Study:
        """Optuna's study, with the first trials waiting in it."""
        with locked(self.folder / "locks" / "studies"):
            study = optuna.create_study(storage=self.storage, study_name=self.name, load_if_exists=True)
            if GUESSED not in study.user_attrs:
                known = {trial.user_attrs.get("start") for trial in study.get_trials(deepcopy=False)}
                sampler, evaluations = self.guess()
                for start, parameters in self._starts(sampler):  # also those beyond `trials`: a later command may have more
                    if start not in known:
                        study.enqueue_trial(parameters, user_attrs={"start": start})
                study.set_user_attr(GUESSED, evaluations)
        return study

    def _starts(self, guess: PreconditionedSDE | None) -> list[tuple[str, dict[str, Any]]]:
        """Names and parameters of the first trials."""
        whole = [(kind.name, kind.starts) for kind in self.kinds]
        guesses = [] if guess is None else [(f"{kind.name}, guessed", kind.of_guess(guess)) for kind in self.kinds]
        return [*whole[:1], *((name, parameters) for name, parameters in guesses if parameters), *whole[1:]]

    def read(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, in their order."""
        return self.study.get_trials(deepcopy=False, states=states)

    @property
    def ended(self) -> list[FrozenTrial]:
        """The ended trials: measured, pruned or failed."""
        found = self.read(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        # Another program may have written trials into a shared database.
        return [trial for trial in found if "overrides" in trial.user_attrs]

    @property
    def best(self) -> list[FrozenTrial]:
        """The measured trials, the best first, one of each setting."""
        found: dict[tuple[str, ...], FrozenTrial] = {}
        measured = [trial for trial in self.ended if trial.state == TrialState.COMPLETE]
        for trial in sorted(measured, key=lambda trial: (trial.value, trial.number)):
            found.setdefault(tuple(trial.user_attrs["overrides"]), trial)
        return list(found.values())

    @contextlib.contextmanager
    def next(self) -> Iterator[tuple[Trial, list[str]] | None]:
        """A trial for this process, with its overrides; None when there is none left to begin."""
        study = self.study
        with contextlib.ExitStack() as held:
            with locked(self.folder / "locks" / "studies"):
                trial = self._abandoned(held) or self._asked(study, held)
                # Inside the lock, so that the next process knows the trial of this one.
                made = None if trial is None else (trial, self._made(trial))
            yield made

    def poor(self, trial: Trial, value: float, error: float) -> bool:
        """Whether the first images of a trial are worse than those of half the earlier trials, beyond their own error."""
        trial.report(value, self.first)
        before = [other.intermediate_values.get(self.first) for other in self.study.get_trials(deepcopy=False)[: trial.number]]
        known = [other for other in before if other is not None]
        return len(known) >= UNPRUNED and value - ERRORS * error > median(known)

    def _abandoned(self, held: contextlib.ExitStack) -> Trial | None:
        """A trial whose process is gone."""
        for trial in self.read(TrialState.RUNNING):
            if held.enter_context(locked(self._lock(trial.number), wait=False)):
                # Its process may have ended before it drew a setting.
                self.study.sampler = self._sampler(self.seed + trial.number)
                return Trial(self.study, trial._trial_id)
        return None

    def _asked(self, study: optuna.Study, held: contextlib.ExitStack) -> Trial | None:
        begun = len(study.get_trials(deepcopy=False)) - len(waiting := self.read(TrialState.WAITING))
        if begun >= self.trials or not (waiting or any(kind.varied for kind in self.kinds)):
            return None
        # The seed follows the number of trials, so that a restarted trial draws the same setting.
        study.sampler = self._sampler(self.seed + begun)
        trial = study.ask()
        held.enter_context(locked(self._lock(trial.number)))
        return trial

    def _sampler(self, seed: int) -> BaseSampler:
        seed %= 2**32
        if self.search == "random":
            return RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            startup = len(self.kinds) + DRAWN
            return TPESampler(n_startup_trials=startup, seed=seed, multivariate=True, group=True, constant_liar=True)

    def _made(self, trial: Trial) -> list[str]:
        """The overrides of a trial, kept with its evaluations."""
        names = [kind.name for kind in self.kinds if kind.varied]
        start = trial.user_attrs.get("start")
        alone = next((kind.name for kind in self.kinds if kind.name == start and not kind.varied), None)
        name = alone or trial.suggest_categorical("kind", names)
        kind = next(kind for kind in self.kinds if kind.name == name)
        overrides = kind.suggested(trial)
        trial.set_user_attr("overrides", overrides)
        trial.set_user_attr("nfe", kind.nfe)
        return overrides

    def _lock(self, number: int) -> Path:
        return self.folder / "locks" / f"{self.name}-{number}"

    def tell(self, trial: Trial, state: TrialState, seconds: float, value: float | None = None, **facts: Any) -> None:
        """Record the outcome of a trial, with facts about it."""
        for key, fact in {"seconds": seconds, **facts}.items():
            trial.set_user_attr(key, fact)
        self.study.tell(trial, value, state)
