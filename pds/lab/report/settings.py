"""Group runs into settings, and settings into curves, heat maps and best α for each T, by their configurations alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from pds.lab.report.runs import OF_T, Run, Runs, differing, grouped, token
from pds.lab.text import is_number, shown

T, ALPHA = "sampler.iterations", "filter.alpha"
_SYMBOLS = {T: "T", ALPHA: "α", "filter.lam": "λ", "filter.r": "r", "solenoid.omega": "ω", "sampler.step_size": "α/σ²"}
_PRECONDITIONER = ("filter.", "solenoid.")

Values = dict[str, Any]
Place = tuple[float, float]


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in their seed alone, one a seed, with their values of the swept keys.

    `quantity` is what is measured: a metric by its full name, or "seconds".
    """

    runs: tuple[Run, ...]
    quantity: str
    values: Values = field(default_factory=dict)

    def mean(self, key: str) -> float:
        """Return the mean over the seeds of a number of the runs."""
        return math.fsum(run.number(key) for run in self.runs) / len(self.runs)

    @cached_property
    def number(self) -> float:
        """The mean of `quantity` over the seeds."""
        return self.mean(self.quantity)

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (of a sample, n - 1); None where there is one seed."""
        squares = math.fsum((run.number(self.quantity) - self.number) ** 2 for run in self.runs)
        return math.sqrt(squares / (len(self.runs) - 1)) if len(self.runs) > 1 else None

    @property
    def vanilla(self) -> bool:
        return self.runs[0].vanilla

    @property
    def sampler(self) -> str:
        return self.runs[0].result["sampler"]


class Line(NamedTuple):
    """Settings of a curve by rising x, equal in all but x, the seed and what follows from x."""

    label: str
    settings: list[Setting]

    @property
    def vanilla(self) -> bool:
        return all(setting.vanilla for setting in self.settings)


class Curves(NamedTuple):
    """Curves over the swept key `x`."""

    x: str
    lines: list[Line]
    levels: list[Line]  # a vanilla setting each, that has no x and agrees with some line in all else
    left_out: int  # lines that are not among `lines`


class HeatMap(NamedTuple):
    """Cells over the swept numbers `x` and `y`, all else held."""

    x: str
    y: str
    cells: dict[Place, Setting]
    lost: dict[Place, str]  # "failed", "damaged" or "skipped" in cells without a setting
    held: str  # what is the same in all cells, short

    @property
    def lowest(self) -> float:
        return min(setting.number for setting in self.cells.values())


class Best(NamedTuple):
    """The best α of a grid at T = `iterations`; the true optimum lies between its neighbours in the grid.

    A neighbour is None at an edge of the grid, where `alpha` is only a bound.
    """

    iterations: float
    alpha: float
    below: float | None
    above: float | None


@dataclass(frozen=True)
class Panel:
    """Finished runs whose distances may be compared, of one metric (whose name has the image count) and one kind.

    `lost` is all that failed, is damaged or was skipped in the group.
    """

    metric: str
    runs: Runs
    lost: Runs

    @property
    def floor(self) -> float | None:
        """Distance of real data to real data under the same name, where known."""
        return self.runs.floors.get(self.metric)

    @cached_property
    def keys(self) -> list[str]:
        """The dotted keys on which the configurations differ in what counts."""
        values = [run.values for run in self.runs]

        def computed(key: str) -> bool:
            pairs = {(token(v.get(T)), token(v[key])) for v in values if key in v}
            return key in OF_T and len(pairs) == len({t for t, _ in pairs})

        return [key for key in differing(values) if not computed(key)]

    @cached_property
    def settings(self) -> list[Setting]:
        groups: dict[Any, tuple[Values, dict[int, Run]]] = {}
        for run in self.runs:
            values = {key: run.values[key] for key in self.keys if key in run.values}
            groups.setdefault(_key(values), (values, {}))[1].setdefault(run.result["seed"], run)
        return [Setting(tuple(seeds.values()), self.metric, values) for values, seeds in groups.values()]

    @property
    def several_seeds(self) -> bool:
        """Whether some setting has more than one seed."""
        return any(setting.spread is not None for setting in self.settings)

    @cached_property
    def axes(self) -> list[str]:
        """The swept numbers, T first, without those that are given together with T."""
        axes = [key for key in self.keys if _varies(_with(self.settings, key), key)]
        followed = [key for key in axes if all(key in _following(f, T) for f in self._families(key) if _varies(f, key))]
        return sorted((key for key in axes if key not in followed), key=lambda key: key != T)

    def _families(self, *keys: str) -> list[list[Setting]]:
        """Group the settings that have numbers for all of `keys`; a group shares every value that is no number."""
        found = _with(self.settings, *keys)
        return list(grouped((_key({k: "" if is_number(v) else v for k, v in s.values.items()}), s) for s in found).values())

    def _apart(self, *keys: str) -> list[tuple[list[Setting], set[str]]]:
        """Group the settings that agree in all but `keys`; with each group come the keys that follow from `keys`."""
        found = []
        for family in self._families(*keys):
            follow = set().union(*(_following(family, key) for key in keys))
            free = {*keys, *follow}
            groups = grouped((_key({k: v for k, v in s.values.items() if k not in free}), s) for s in family)
            found += [(group, follow) for group in groups.values()]
        return found

    def label(self, settings: Sequence[Setting], without: Iterable[str] = (), following: Iterable[str] = ()) -> str:
        """Name `settings` by the values that tell them from others: "PDS α=5", "vanilla T=50"."""
        words, values = ["vanilla" if all(s.vanilla for s in settings) else "PDS"], settings[0].values
        for key in sorted(values.keys() - set(without), key=lambda k: (not k.startswith(_PRECONDITIONER), self.keys.index(k))):
            part = key.startswith(_PRECONDITIONER)
            variants = {token(s.values[key]) for s in self.settings if key in s.values}
            if key.endswith("_target_"):
                continue
            if key in following:
                words += [f"{symbol(key)} by {'/'.join(map(symbol, without))}"] * part
            elif key == "solenoid.operator" or (part and is_number(values[key])) or len(variants) > 1:
                bare = isinstance(values[key], str) and key != ALPHA
                words.append(shown(values[key]) if bare else f"{symbol(key)}={shown(values[key])}")
        several = len({s.sampler for s in self.settings}) > 1
        return " ".join(words) + (f", {settings[0].sampler}" if several else "")

    def _order(self, setting: Setting, *without: str) -> list[tuple[bool, float, str]]:
        values = [setting.values.get(key) for key in self.keys if key not in without]
        return [(not is_number(v), float(v or 0) if is_number(v) else 0.0, str(v)) for v in values]

    def curves(self, x: str, most: int = 10) -> Curves | None:
        """Return the curves over `x`; None without a line.

        Of more than `most` lines those with the lowest numbers are kept, single points last. Neither vanilla nor preconditioned
        lines crowd out the others.
        """
        apart = [(sorted(group, key=lambda s: s.values[x]), follow) for group, follow in self._apart(x)]
        lines = [Line(self.label(group, (x,), follow), group) for group, follow in apart]
        if all(len(line.settings) == 1 for line in lines):
            return None
        lines.sort(key=lambda line: (len(line.settings) == 1, min(s.number for s in line.settings)))
        vanilla, pds = ([line for line in lines if line.vanilla is kind] for kind in (True, False))
        kept = vanilla[: max(most // 2, most - len(pds))] + pds[: max(most - most // 2, most - len(vanilla))]
        kept.sort(key=lambda line: (not line.vanilla, self._order(line.settings[0], x)))

        def rest(setting: Setting) -> Values:
            return {k: v for k, v in setting.values.items() if k != x and not k.startswith(_PRECONDITIONER)}

        beside = [rest(setting) for line in kept for setting in line.settings]
        levels = [s for s in self.settings if s.vanilla and x not in s.values and rest(s) in beside]
        levels.sort(key=self._order)
        return Curves(x, kept, [Line(self.label([s]), [s]) for s in levels], len(lines) - len(kept))

    def heat_maps(self, x: str, y: str, most: int = 6) -> tuple[list[HeatMap], int]:
        """Return a map for each value of all else that has 2 x 2 filled cells, and the number of maps left out.

        Of more than `most` maps those with the lowest numbers are kept.
        """

        def place(values: Values) -> Place:
            return float(values[x]), float(values[y])

        maps = []
        for group, follow in self._apart(x, y):
            cells = {place(s.values): s for s in group}
            xs, ys = (itertools.combinations({at[axis] for at in cells}, 2) for axis in (0, 1))
            if any(cells.keys() >= set(itertools.product(*sides)) for sides in itertools.product(xs, ys)):
                lost = {place(run.values): run.state for run in self._lost_beside(group[0], x, y)}
                held = self._held(group, self.label(group, (x, y), follow).removeprefix("PDS").strip(" ,"), (x, y))
                maps.append(HeatMap(x, y, cells, {at: state for at, state in lost.items() if at not in cells}, held))
        kept = sorted(maps, key=lambda found: found.lowest)[:most]
        kept.sort(key=lambda found: self._order(next(iter(found.cells.values())), x, y))
        return kept, len(maps) - len(kept)

    def _held(self, group: Sequence[Setting], held: str, without: Iterable[str]) -> str:
        """Add T and the sampler to `held`: a reader asks for them even where the whole group shares them."""
        lengths = {s.mean("iterations") for s in group} if T not in {*without, *self.keys} else set()
        facts = [
            held,
            f"T={shown(*lengths)}" if len(lengths) == 1 else "",
            "" if group[0].sampler in held else group[0].sampler,
        ]
        return ", ".join(filter(None, facts))

    def _lost_beside(self, setting: Setting, *keys: str) -> list[Run]:
        """Return the lost runs that have numbers for `keys` and, as far as is known, the values of `setting` for all else."""
        shared = {k: v for k, v in self.runs.runs[0].values.items() if k not in {*self.keys, *OF_T}}
        alike = {k: token(v) for k, v in {**shared, **setting.values}.items() if k not in keys}
        return [
            run
            for run in _with(self.lost, *keys)
            if all(key not in run.values or token(run.values[key]) == value for key, value in alike.items())
        ]

    def best_alphas(self) -> list[tuple[str, list[Best]]]:
        """Return the best α of each T with several α, by label of all else; a label needs two such T."""
        found = []
        for group, follow in self._apart(ALPHA, T):
            bests = []
            for t in sorted({s.values[T] for s in group}):
                grid = sorted((s for s in group if s.values[T] == t), key=lambda s: s.values[ALPHA])
                alphas: list[Any] = [None, *(float(s.values[ALPHA]) for s in grid), None]
                i = 1 + min(range(len(grid)), key=lambda i: grid[i].number)
                bests += [Best(float(t), alphas[i], alphas[i - 1], alphas[i + 1])] if len(grid) > 1 else []
            if len(bests) > 1:
                found.append((self.label(group, (ALPHA, T), follow), bests))
        return found

    def references(self) -> list[Place]:
        """Return the pairs (α_ref, T_ref) that the configurations name for α ∝ T."""
        keys = ("filter.reference.alpha", "filter.reference.iterations")
        pairs: set[tuple[Any, ...]] = {tuple(map(run.flat.get, keys)) for run in self.runs}
        return sorted((float(a), float(t)) for a, t in pairs if is_number(a) and is_number(t))


def _measured(metric: str, kind: object, run: Run) -> bool:
    return metric in run.metrics and run.kind == kind


def panels(runs: Runs) -> list[Panel]:
    """Part the finished runs into panels whose distances may be compared, in the order of the table."""
    lost = runs.where(lambda run: run.state in ("failed", "damaged", "skipped"))
    known = runs.done.where(lambda run: bool(run.config))
    kinds = dict.fromkeys((name, run.kind) for name in runs.metrics for run in known if name in run.metrics)
    return [Panel(name, known.where(partial(_measured, name, kind)), lost) for name, kind in kinds]


def swept_keys(runs: Runs) -> list[str]:
    """Return the keys that differ within a panel; without a finished run, those that differ between all runs."""
    found = panels(runs)
    return list(dict.fromkeys(k for panel in found for k in panel.keys) if found else differing([run.values for run in runs]))


def symbol(key: str) -> str:
    """Return the papers' symbol of a key, or its own name."""
    return _SYMBOLS.get(key, key.removesuffix("._target_").rpartition(".")[2])


def _key(values: Values) -> frozenset[tuple[str, float | str]]:
    return frozenset((key, token(value)) for key, value in values.items())


def _with(items: Iterable[Any], *keys: str) -> list[Any]:
    """Return the settings or runs that have numbers for all of `keys`."""
    return [item for item in items if all(is_number(item.values.get(key)) for key in keys)]


def _varies(settings: Sequence[Setting], key: str) -> bool:
    return len({s.values[key] for s in settings}) > 1


def _following(settings: Sequence[Setting], x: str) -> set[str]:
    """Return the other keys whose numbers pair one to one with those of `x`."""
    found = set()
    for key in settings[0].values:
        if key != x and len(_with(settings, x, key)) == len(settings):
            pairs = {(s.values[x], s.values[key]) for s in settings}
            found |= {key} if 1 < len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) else set()
    return found
