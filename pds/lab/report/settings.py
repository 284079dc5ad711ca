"""Settings and their seeds: axes, curves, heat maps and the best α for each T, from the configurations alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pds.lab.report.runs import OF_T, Run, Runs, differing, token
from pds.lab.report.text import is_number, shown

T = "sampler.iterations"
ALPHA = "filter.alpha"

_SYMBOLS = {T: "T", ALPHA: "α", "filter.lam": "λ", "filter.r": "r", "solenoid.omega": "ω", "sampler.step_size": "α/σ²"}
_PRECONDITIONER = ("filter.", "solenoid.")


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in nothing but their seed, one a seed.

    Attributes:
        runs: the runs.
        quantity: what is measured: a metric by its full name, or "seconds".
        values: those of the keys that its panel was swept over.
    """

    runs: tuple[Run, ...]
    quantity: str
    values: dict[str, Any] = field(default_factory=dict)

    def mean(self, key: str) -> float:
        """Mean over the seeds of a number of the runs."""
        return math.fsum(run.number(key) for run in self.runs) / len(self.runs)

    @cached_property
    def number(self) -> float:
        """What is measured, its mean over the seeds."""
        return self.mean(self.quantity)

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (of a sample, n - 1); None where there is one."""
        if len(self.runs) == 1:
            return None
        squares = math.fsum((run.number(self.quantity) - self.number) ** 2 for run in self.runs)
        return math.sqrt(squares / (len(self.runs) - 1))

    @property
    def vanilla(self) -> bool:
        return self.runs[0].vanilla

    @property
    def sampler(self) -> str:
        return self.runs[0].result["sampler"]


@dataclass(frozen=True)
class Line:
    """Settings of a curve by rising x, equal in all but x, the seed and what follows from x; `label` is short."""

    label: str
    settings: tuple[Setting, ...]

    @property
    def vanilla(self) -> bool:
        return all(setting.vanilla for setting in self.settings)


@dataclass(frozen=True)
class Curves:
    """What is measured against the swept key `x`.

    Attributes:
        x: the key.
        lines: those of settings that have x.
        levels: vanilla settings that have no x and agree with some line in all else, a line each.
        left_out: number of lines that are not among `lines`.
    """

    x: str
    lines: tuple[Line, ...]
    levels: tuple[Line, ...]
    left_out: int


@dataclass(frozen=True)
class HeatMap:
    """What is measured over two swept numbers, all else held.

    Attributes:
        x, y: the keys.
        cells: settings by (x, y).
        lost: "failed", "damaged" or "skipped" by (x, y), for cells without a setting.
        held: what is the same in all cells, short.
    """

    x: str
    y: str
    cells: dict[tuple[float, float], Setting]
    lost: dict[tuple[float, float], str]
    held: str

    @property
    def lowest(self) -> float:
        return min(setting.number for setting in self.cells.values())

    def ticks(self, axis: int) -> list[float]:
        """The values of x (axis 0) or y (axis 1), rising."""
        return sorted({place[axis] for place in (*self.cells, *self.lost)})


@dataclass(frozen=True)
class Best:
    """The best α of a grid at one T, with its neighbours in the grid: the true optimum lies between them.

    Attributes:
        iterations: T.
        alpha: of the lowest mean.
        below, above: its neighbours; None at an edge of the grid, where `alpha` is only a bound.
    """

    iterations: float
    alpha: float
    below: float | None
    above: float | None

    @property
    def span(self) -> tuple[float, float]:
        """From neighbour to neighbour, where there are such."""
        return self.alpha if self.below is None else self.below, self.alpha if self.above is None else self.above


@dataclass(frozen=True)
class Panel:
    """Runs whose distances may be compared: of one metric (whose name has the image count) and one kind.

    Attributes:
        metric: full name of the metric.
        runs: the finished runs that have it.
        lost: all that failed, is damaged or was skipped in the group.
    """

    metric: str
    runs: Runs
    lost: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def model(self) -> str:
        return self.runs.models[0]

    @property
    def floor(self) -> float | None:
        """Distance of real data to real data under the same name, where known."""
        return self.runs.floors.get(self.metric)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys on which the configurations differ in what counts."""
        values = [run.values for run in self.runs]

        def computed(key: str) -> bool:
            pairs = {(token(v.get(T)), token(v[key])) for v in values if key in v}
            return key in OF_T and len(pairs) == len({t for t, _ in pairs})

        return tuple(key for key in differing(values) if not computed(key))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        groups: dict[Any, tuple[dict[str, Any], dict[Any, Run]]] = {}
        for run in self.runs:
            values = {key: run.values[key] for key in self.keys if key in run.values}
            own, seeds = groups.setdefault(_identity(values), (values, {}))
            seeds.setdefault(run.result["seed"], run)
        return tuple(Setting(tuple(seeds.values()), self.metric, values) for values, seeds in groups.values())

    @property
    def several_seeds(self) -> bool:
        """Whether some setting has more than one seed."""
        return any(setting.spread is not None for setting in self.settings)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The swept numbers, T first, without those that are given together with T."""
        axes = [key for key in self.keys if _varies([s for s in self.settings if is_number(s.values.get(key))], key)]
        followed = [key for key in axes if all(key in _following(f, T) for f in self._families(key) if _varies(f, key))]
        return tuple(sorted((key for key in axes if key not in followed), key=lambda key: key != T))

    def _families(self, *keys: str) -> list[list[Setting]]:
        """The settings with numbers for all of `keys`, apart where anything that is not a number differs, or is not there."""
        return _grouped(
            [s for s in self.settings if all(is_number(s.values.get(key)) for key in keys)],
            lambda s: {k: "" if is_number(v) else v for k, v in s.values.items()},
        )

    def _apart(self, *keys: str) -> list[tuple[list[Setting], set[str]]]:
        """The settings with numbers for all of `keys` that agree in all else, and what besides follows from `keys`."""
        found = []
        for family in self._families(*keys):
            follow = set().union(*(_following(family, key) for key in keys))
            free = {*keys, *follow}
            groups = _grouped(family, lambda s, free=free: {k: v for k, v in s.values.items() if k not in free})
            found += [(group, follow) for group in groups]
        return found

    def label(self, settings: Sequence[Setting], without: Iterable[str] = (), following: Iterable[str] = ()) -> str:
        """What `settings` have in common that others have not: "PDS α=5", "vanilla, T=50"."""
        words, values = ["vanilla" if all(s.vanilla for s in settings) else "PDS"], settings[0].values
        for key in sorted(self.keys, key=lambda key: not key.startswith(_PRECONDITIONER)):
            if key in without or key not in values or key.endswith("_target_"):
                continue
            part = key.startswith(_PRECONDITIONER)
            variants = {token(s.values[key]) for s in self.settings if key in s.values}
            if key in following:
                words += [f"{symbol(key)} by {'/'.join(map(symbol, without))}"] * part
            elif key == "solenoid.operator" or (part and is_number(values[key])) or len(variants) > 1:
                bare = isinstance(values[key], str) and key != ALPHA
                words.append(shown(values[key]) if bare else f"{symbol(key)}={shown(values[key])}")
        several = len({s.sampler for s in self.settings}) > 1
        return " ".join(words) + (f", {settings[0].sampler}" if several else "")

    def curves(self, x: str, most: int = 10) -> Curves | None:
        """What is measured against `x`; None without a line.

        Where there are more than `most` lines, those with the lowest numbers, single points last, and neither the vanilla
        nor the preconditioned ones crowd out the others.
        """
        lines = [
            Line(self.label(group, (x,), follow), tuple(sorted(group, key=lambda s: s.values[x])))
            for group, follow in self._apart(x)
        ]
        if all(len(line.settings) == 1 for line in lines):
            return None
        lines.sort(key=lambda line: (len(line.settings) == 1, min(s.number for s in line.settings)))
        vanilla, pds = ([line for line in lines if line.vanilla is kind] for kind in (True, False))
        foremost = vanilla[: max(most // 2, most - len(pds))] + pds[: max(most - most // 2, most - len(vanilla))]
        kept = sorted(foremost, key=lambda line: (not line.vanilla, self._order(line.settings[0], (x,))))
        levels = [s for s in self.settings if s.vanilla and x not in s.values and self._beside(s, x, kept)]
        levels.sort(key=lambda s: self._order(s, (x,)))
        return Curves(x, tuple(kept), tuple(Line(self.label([s]), (s,)) for s in levels), len(lines) - len(kept))

    def _order(self, setting: Setting, without: Iterable[str]) -> tuple[tuple[bool, float, str], ...]:
        values = [setting.values.get(key) for key in self.keys if key not in without]
        return tuple((not is_number(v), v if is_number(v) else 0, str(v)) for v in values)

    def _beside(self, vanilla: Setting, x: str, lines: Sequence[Line]) -> bool:
        """Whether some line has a setting that differs from `vanilla` in its filter and solenoid alone."""

        def rest(setting: Setting) -> dict[str, Any]:
            return {k: v for k, v in setting.values.items() if k != x and not k.startswith(_PRECONDITIONER)}

        return any(rest(setting) == rest(vanilla) for line in lines for setting in line.settings)

    def heat_maps(self, x: str, y: str, most: int = 6) -> tuple[list[HeatMap], int]:
        """What is measured over `x` and `y` for each value of all else, where 2 x 2 cells are filled.

        Where there are more than `most` maps, those with the lowest numbers; and the number of those left out.
        """

        def place(values: dict[str, Any]) -> tuple[float, float]:
            return float(values[x]), float(values[y])

        maps: list[tuple[Any, HeatMap]] = []
        for group, follow in self._apart(x, y):
            cells = {place(s.values): s for s in group}
            if _has_square(cells):
                beside = {place(run.values): run.state for run in self._lost_beside(group[0], x, y)}
                lost = {at: state for at, state in beside.items() if at not in cells}
                held = self.label(group, (x, y), follow).removeprefix("PDS").strip(" ,")
                found = HeatMap(x, y, cells, lost, self._held(group, held, (x, y)))
                maps.append((self._order(group[0], (x, y)), found))
        maps.sort(key=lambda item: item[1].lowest)
        return [found for _, found in sorted(maps[:most], key=lambda item: item[0])], max(0, len(maps) - most)

    def _held(self, group: Sequence[Setting], held: str, without: Iterable[str]) -> str:
        """`held` with T and the sampler, which a reader asks for even where the whole group shares them."""
        iterations = {s.mean("iterations") for s in group}
        facts = [f"T={shown(iterations.pop())}"] if T not in without and T not in self.keys and len(iterations) == 1 else []
        facts += [group[0].sampler] if group[0].sampler not in held else []
        return ", ".join(filter(None, [held, *facts]))

    def _lost_beside(self, setting: Setting, *keys: str) -> list[Run]:
        """What was lost with numbers for `keys` and, as far as is known, `setting`'s values for all else."""
        alike = {k: v for k, v in {**self.runs.runs[0].values, **setting.values}.items() if k not in keys}
        alike = {k: v for k, v in alike.items() if k in setting.values or k not in {*self.keys, *OF_T}}
        return [
            run
            for run in self.lost
            if all(is_number(run.values.get(key)) for key in keys)
            and all(key not in run.values or token(run.values[key]) == token(value) for key, value in alike.items())
        ]

    def best_alphas(self) -> list[tuple[str, list[Best]]]:
        """The best α for each T that was measured at several α, by label of all else; only where there are two such T."""
        found = []
        for group, follow in self._apart(ALPHA, T):
            bests = []
            for t in sorted({s.values[T] for s in group}):
                grid = sorted((s for s in group if s.values[T] == t), key=lambda s: s.values[ALPHA])
                alphas = [None, *(float(s.values[ALPHA]) for s in grid), None]
                if len(grid) > 1:
                    i = 1 + min(range(len(grid)), key=lambda i: grid[i].number)
                    bests.append(Best(float(t), alphas[i], alphas[i - 1], alphas[i + 1]))
            if len(bests) > 1:
                found.append((self.label(group, (ALPHA, T), follow), bests))
        return found

    def references(self) -> list[tuple[float, float]]:
        """The pairs (α_ref, T_ref) that the configurations name for α ∝ T."""
        filters = [node for run in self.runs if isinstance(node := run.config.get("filter"), dict)]
        nodes = [node for filter in filters if isinstance(node := filter.get("reference"), dict)]
        pairs = {(node.get("alpha"), node.get("iterations")) for node in nodes}
        return sorted((float(a), float(t)) for a, t in pairs if is_number(a) and is_number(t))


def panels(runs: Runs) -> list[Panel]:
    """The finished runs apart where their distances may not be compared, in the order of the table."""
    lost = tuple(run for run in runs if run.state in ("failed", "damaged", "skipped"))
    known = runs.done.where(lambda run: bool(run.config))
    kinds = dict.fromkeys((name, run.kind) for name in runs.metrics for run in known if name in run.metrics)
    return [
        Panel(name, known.where(lambda run, name=name, kind=kind: name in run.metrics and run.kind == kind), lost)
        for name, kind in kinds
    ]


def swept_keys(runs: Runs) -> list[str]:
    """The keys that differ between runs that may be compared; where none is finished, between those that are not."""
    found = panels(runs)
    if found:
        return list(dict.fromkeys(key for panel in found for key in panel.keys))
    return list(differing([run.values for run in runs]))


def symbol(key: str) -> str:
    """The papers' symbol of a key, or its own name."""
    return _SYMBOLS.get(key, key.removesuffix("._target_").rpartition(".")[2])


def _identity(values: dict[str, Any]) -> tuple[tuple[str, float | str], ...]:
    return tuple(sorted((key, token(value)) for key, value in values.items()))


def _grouped(settings: Iterable[Setting], values: Any) -> list[list[Setting]]:
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(_identity(values(setting)), []).append(setting)
    return list(groups.values())


def _varies(settings: Sequence[Setting], key: str) -> bool:
    return len({s.values[key] for s in settings}) > 1


def _following(settings: Sequence[Setting], x: str) -> set[str]:
    """The other numbers that are given together with `x`: each value of theirs at one x and at each x one value."""
    found = set()
    for key in settings[0].values:
        if key != x and all(is_number(s.values.get(k)) for s in settings for k in (key, x)):
            pairs = {(s.values[x], s.values[key]) for s in settings}
            if 1 < len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                found.add(key)
    return found


def _has_square(places: Iterable[tuple[float, float]]) -> bool:
    columns: dict[float, set[float]] = {}
    for column, row in places:
        columns.setdefault(column, set()).add(row)
    return any(len(a & b) > 1 for a, b in itertools.combinations(columns.values(), 2))
