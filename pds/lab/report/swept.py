"""What a group of runs was swept over: axes, curves, heat maps and the best α for each T, from the configurations alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from pds.lab.report.runs import RunSummary, differing, flatten, floors, metric_names, model
from pds.lab.runs import identity

T = "sampler.iterations"
ALPHA = "filter.alpha"

_SYMBOLS = {T: "T", ALPHA: "α", "filter.lam": "λ", "filter.r": "r", "solenoid.omega": "ω", "sampler.step_size": "α/σ²"}
_BESIDE = ("seed", "shard_size", "name", "images")
"""Seeds repeat a measurement; the number of images is part of the metric's name."""
_BESIDE_PREFIXES = ("published.", "metric.", "fingerprint.", "filter.reference.")
_PRECONDITIONER = ("filter.", "solenoid.")
_OF_T = ("sampler.end", "filter.iterations")
"""Keys that configurations compute from T."""


@dataclass(frozen=True)
class Setting:
    """Finished runs of one panel that differ in nothing but their seed.

    Attributes:
        values: the swept keys that this setting has, by dotted name.
        runs: one a seed.
        metric: full name of the metric.
    """

    values: dict[str, Any]
    runs: tuple[RunSummary, ...]
    metric: str

    @property
    def distances(self) -> list[float]:
        return [run.metrics[self.metric] for run in self.runs]

    @property
    def distance(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.distances) / len(self.runs)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (of a sample, n - 1), 0 where there is one."""
        n = len(self.runs)
        return math.sqrt(math.fsum((d - self.distance) ** 2 for d in self.distances) / (n - 1)) if n > 1 else 0.0

    @property
    def vanilla(self) -> bool:
        return self.runs[0].vanilla

    @property
    def sampler(self) -> str:
        return str(self.runs[0].result.get("sampler", ""))

    def mean(self, key: str) -> float:
        """Mean over the seeds of a number of result.json ("iterations", "nfe", "seconds"); NaN where a run has none."""
        return math.fsum(float(run.result.get(key, math.nan)) for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class Lost:
    """A run or point that failed or was skipped.

    Attributes:
        values: what is known of its configuration: all of it, or what its command line gave.
        state: "failed" or "skipped".
    """

    values: dict[str, Any]
    state: str


@dataclass(frozen=True)
class Line:
    """The settings of a curve: equal but for x, the seed and what follows from x.

    Attributes:
        label: short, of the swept values.
        settings: by rising x; of a level (a vanilla setting that has no x) the only one.
        vanilla: whether all of them are.
    """

    label: str
    settings: tuple[Setting, ...]
    vanilla: bool


@dataclass(frozen=True)
class Curves:
    """Distance against one swept key.

    Attributes:
        x: the key.
        lines: those of settings that have x.
        levels: vanilla settings that have no x and agree with some line in all else.
        left_out: number of lines that are not among `lines`.
    """

    x: str
    lines: tuple[Line, ...]
    levels: tuple[Line, ...]
    left_out: int


@dataclass(frozen=True)
class HeatMap:
    """Distance over two swept numbers, all else held.

    Attributes:
        x, y: the keys.
        columns, rows: their values, rising.
        cells: settings by (column, row).
        lost: "failed" or "skipped" by (column, row), for cells without a setting.
        held: what is the same in all cells, short.
    """

    x: str
    y: str
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    cells: dict[tuple[float, float], Setting]
    lost: dict[tuple[float, float], str]
    held: str

    @property
    def lowest(self) -> float:
        return min((s.distance for s in self.cells.values() if math.isfinite(s.distance)), default=math.inf)


@dataclass(frozen=True)
class Best:
    """The best α of a grid at one T, with its neighbours in the grid: the true optimum lies between them.

    Attributes:
        iterations: T.
        alpha: of the lowest mean distance.
        below, above: its neighbours; None at an edge of the grid, where `alpha` is only a bound.
    """

    iterations: float
    alpha: float
    below: float | None
    above: float | None


@dataclass(frozen=True)
class Panel:
    """Runs whose distances may be compared: same metric (whose name has the image count), model, weights and reference.

    Attributes:
        metric: full name of the metric.
        runs: the finished runs that have it.
        floor: distance of real data to real data under the same name, where known.
        lost: all that failed or was skipped in the group.
    """

    metric: str
    runs: tuple[RunSummary, ...]
    floor: float | None = None
    lost: tuple[RunSummary, ...] = field(default=(), repr=False)

    @property
    def model(self) -> str:
        return model(self.runs[0])

    @cached_property
    def _constants(self) -> dict[str, Any]:
        values = [known_values(run) for run in self.runs]
        return {k: v for k, v in values[0].items() if k not in self.keys and all(_same(other.get(k), v) for other in values)}

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys on which the configurations differ, without bookkeeping and what follows from T."""
        values = [_what(run.config) for run in self.runs]
        keys = dict.fromkeys(key for v in values for key in v)
        swept = [key for key in keys if any(key not in v or not _same(v[key], values[0].get(key)) for v in values)]

        def computed(key: str) -> bool:
            pairs = {(v.get(T), _hashable(v[key])) for v in values if key in v}
            return key in _OF_T and len(pairs) == len({t for t, _ in pairs})

        return tuple(key for key in swept if not computed(key))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        groups: dict[Any, dict[Any, RunSummary]] = {}
        for run in self.runs:
            values = {key: value for key, value in _what(run.config).items() if key in self.keys}
            identity = tuple(sorted((key, _hashable(value)) for key, value in values.items()))
            groups.setdefault(repr(identity), {}).setdefault(run.result.get("seed"), run)
        return tuple(
            Setting({k: v for k, v in _what(runs[0].config).items() if k in self.keys}, runs, self.metric)
            for runs in (tuple(group.values()) for group in groups.values())
        )

    @property
    def seeds(self) -> tuple[int, int]:
        """Least and largest number of seeds a setting."""
        counts = [len(setting.runs) for setting in self.settings]
        return min(counts), max(counts)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The swept numbers, T first, without those that are given together with T."""
        axes = [key for key in self.keys if len({s.values[key] for s in _with(self.settings, key)}) > 1]
        followed = [key for key in axes if all(key in _following(f, T) for f in self._families(key) if _varies(f, key))]
        return tuple(sorted((key for key in axes if key not in followed), key=lambda key: key != T))

    def _families(self, *keys: str) -> list[list[Setting]]:
        """The settings with numbers for all of `keys`, apart where anything that is not a number differs, or is not there."""
        families: dict[Any, list[Setting]] = {}
        for setting in self.settings:
            if all(_is_number(setting.values.get(key)) for key in keys):
                kind = sorted((k, "" if _is_number(v) else repr(v)) for k, v in setting.values.items())
                families.setdefault(tuple(kind), []).append(setting)
        return list(families.values())

    def _apart(self, *keys: str) -> list[tuple[list[Setting], set[str]]]:
        """The settings with numbers for all of `keys` that agree in all else, and what besides follows from `keys`."""
        found = []
        for family in self._families(*keys):
            follow = set().union(*(_following(family, key) for key in keys))
            groups: dict[str, list[Setting]] = {}
            for setting in family:
                rest = sorted((k, repr(v)) for k, v in setting.values.items() if k not in follow and k not in keys)
                groups.setdefault(repr(rest), []).append(setting)
            found += [(group, follow) for group in groups.values()]
        return found

    def label(self, settings: Sequence[Setting], without: Iterable[str] = (), following: Iterable[str] = ()) -> str:
        """What `settings` have in common that others have not: "PDS α=5", "vanilla, T=50"."""
        vanilla, values = all(s.vanilla for s in settings), settings[0].values
        words = ["vanilla" if vanilla else "PDS"]
        for key in sorted(self.keys, key=lambda key: not key.startswith(_PRECONDITIONER)):
            if key in without or key not in values or key.endswith("_target_"):
                continue
            part = key.startswith(_PRECONDITIONER)
            variants = {_hashable(s.values[key]) for s in self.settings if key in s.values}
            if key in following:
                words += [f"{symbol(key)} by {'/'.join(map(symbol, without))}"] * part
            elif key == "solenoid.operator" or (part and _is_number(values[key])) or len(variants) > 1:
                bare = isinstance(values[key], str) and key != ALPHA
                words.append(shown(values[key]) if bare else f"{symbol(key)}={shown(values[key])}")
        several = len({s.sampler for s in self.settings}) > 1
        return " ".join(words) + (f", {settings[0].sampler}" if several else "")

    def curves(self, x: str, most: int = 10) -> Curves | None:
        """Distance against `x`; None without a line.

        Where there are more than `most` lines, those with the lowest distances, single points last, and neither the
        vanilla nor the preconditioned ones crowd out the others.
        """
        found = [(sorted(group, key=lambda s: s.values[x]), follow) for group, follow in self._apart(x)]
        if not any(len(group) > 1 for group, _ in found):
            return None
        lines = [Line(self.label(group, (x,), follow), tuple(group), all(s.vanilla for s in group)) for group, follow in found]
        lines.sort(key=lambda line: (len(line.settings) == 1, min(map(_finite_distance, line.settings))))
        vanilla, pds = ([line for line in lines if line.vanilla is kind] for kind in (True, False))
        foremost = vanilla[: max(most // 2, most - len(pds))] + pds[: max(most - most // 2, most - len(vanilla))]
        kept = sorted(foremost, key=lambda line: (not line.vanilla, self._order(line.settings[0], (x,))))
        levels = [s for s in self.settings if s.vanilla and x not in s.values and self._beside(s, x, kept)]
        levels.sort(key=lambda s: self._order(s, (x,)))
        return Curves(x, tuple(kept), tuple(Line(self.label([s]), (s,), True) for s in levels), len(lines) - len(kept))

    def _order(self, setting: Setting, without: Iterable[str]) -> tuple[tuple[bool, float, str], ...]:
        values = [setting.values.get(key) for key in self.keys if key not in without]
        return tuple((not _is_number(v), v if _is_number(v) else 0, str(v)) for v in values)

    def _beside(self, vanilla: Setting, x: str, lines: Sequence[Line]) -> bool:
        """Whether some line has a setting that is `vanilla` but for its filter and solenoid."""

        def rest(setting: Setting) -> dict[str, Any]:
            return {k: v for k, v in setting.values.items() if k != x and not k.startswith(_PRECONDITIONER)}

        return any(rest(setting) == rest(vanilla) for line in lines for setting in line.settings)

    def heat_maps(self, x: str, y: str, most: int = 6) -> tuple[list[HeatMap], int]:
        """Distance over `x` and `y` for each value of all else, where 2 x 2 cells are filled.

        Where there are more than `most` maps, those with the lowest distances; and the number of those left out.
        """
        maps: list[tuple[Any, HeatMap]] = []
        for group, follow in self._apart(x, y):
            cells = {(float(s.values[x]), float(s.values[y])): s for s in group}
            if not _has_square(cells.keys()):
                continue
            lost = {}
            for item in self._lost_beside(group[0], x, y):
                place = (float(item.values[x]), float(item.values[y]))
                if place not in cells:
                    lost[place] = item.state
            columns, rows = (tuple(sorted({place[i] for place in (*cells, *lost)})) for i in (0, 1))
            held = self.label(group, (x, y), follow).removeprefix("PDS").strip(" ,")
            found = HeatMap(x, y, columns, rows, cells, lost, self._held(group, held, (x, y)))
            maps.append((self._order(group[0], (x, y)), found))
        maps.sort(key=lambda item: item[1].lowest)
        return [found for _, found in sorted(maps[:most], key=lambda item: item[0])], max(0, len(maps) - most)

    def _held(self, group: Sequence[Setting], held: str, without: Iterable[str]) -> str:
        """`held` with T and the sampler, which a reader asks for even where the whole group shares them."""
        facts = [held] if held else []
        iterations = {s.mean("iterations") for s in group}
        if T not in without and T not in self.keys and len(iterations) == 1 and math.isfinite(min(iterations)):
            facts.append(f"T={shown(iterations.pop())}")
        sampler = group[0].sampler
        return ", ".join(facts + ([sampler] if sampler and sampler not in held else []))

    def _lost_beside(self, setting: Setting, *keys: str) -> list[Lost]:
        """What failed or was skipped with numbers for `keys` and, as far as is known, `setting`'s values for all else."""
        items = [Lost(known_values(run), run.state) for run in self.lost]
        alike = {**self._constants, **{k: v for k, v in setting.values.items() if k not in keys}}
        return [
            item
            for item in items
            if all(_is_number(item.values.get(key)) for key in keys)
            and all(key not in item.values or _same(item.values[key], value) for key, value in alike.items())
        ]

    def best_alphas(self) -> list[tuple[str, list[Best]]]:
        """The best α for each T that was measured at several α, by label of all else; only where there are two such T."""
        found = []
        for group, follow in self._apart(ALPHA, T):
            bests = []
            for t in sorted({s.values[T] for s in group}):
                grid = sorted((s for s in group if s.values[T] == t), key=lambda s: s.values[ALPHA])
                alphas = [float(s.values[ALPHA]) for s in grid]
                if len(grid) > 1:
                    i = min(range(len(grid)), key=lambda i: _finite_distance(grid[i]))
                    below, above = alphas[i - 1] if i else None, alphas[i + 1] if i + 1 < len(grid) else None
                    bests.append(Best(float(t), alphas[i], below, above))
            if len(bests) > 1:
                found.append((self.label(group, (ALPHA, T), follow), bests))
        return found

    def references(self) -> list[tuple[float, float]]:
        """The pairs (α_ref, T_ref) that the configurations name for α ∝ T."""
        pairs = {
            (node.get("alpha"), node.get("iterations"))
            for run in self.runs
            if isinstance(node := (run.config.get("filter") or {}).get("reference"), dict)
        }
        return sorted((float(a), float(t)) for a, t in pairs if _is_number(a) and _is_number(t))


def panels(runs: Sequence[RunSummary]) -> list[Panel]:
    """The finished runs apart where their distances may not be compared, in the order of the table."""
    groups: dict[Any, list[RunSummary]] = {}
    for run in (run for run in runs if run.config):
        for metric in run.metrics:
            prints = run.config.get("fingerprint") or {}
            key = (metric, model(run), prints.get("weights"), prints.get("reference"))
            groups.setdefault(key, []).append(run)
    order = metric_names(runs)
    lost = tuple(run for run in runs if run.state in ("failed", "skipped"))
    return [
        Panel(key[0], tuple(group), floors(group).get(key[0]), lost)
        for key, group in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]


def swept_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys that differ between runs that may be compared; where none is finished, between those that are not."""
    found = panels(runs)
    if found:
        return list(dict.fromkeys(key for panel in found for key in panel.keys))
    return list(differing([known_values(run) for run in runs]))


def symbol(key: str) -> str:
    """The papers' symbol of a key, or its own name."""
    return _SYMBOLS.get(key, key.removesuffix("._target_").rpartition(".")[2])


def shown(value: Any) -> str:
    """A value of a configuration, short."""
    return f"{value:g}" if _is_number(value) else value if isinstance(value, str) else json.dumps(value, default=str)


def _what(config: dict[str, Any]) -> dict[str, Any]:
    """The flat configuration without bookkeeping."""
    flat = identity(config)
    return {k: v for k, v in flat.items() if k not in _BESIDE and not k.startswith(_BESIDE_PREFIXES) and v is not None}


def known_values(run: RunSummary) -> dict[str, Any]:
    """What is known of a run's configuration: all of it, or what its command line gave."""
    if run.config:
        return {**_what(run.config), "images": run.config.get("images")}
    given = {}
    for override in run.overrides:
        key, _, text = override.lstrip("+~").partition("=")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            given[key] = text
    return {k: v for k, v in flatten(given).items() if k not in ("seed", "shard_size") and not k.startswith(_BESIDE_PREFIXES)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value, default=str)


def _finite_distance(setting: Setting) -> float:
    return setting.distance if math.isfinite(setting.distance) else math.inf


def _with(settings: Sequence[Setting], key: str) -> list[Setting]:
    return [s for s in settings if _is_number(s.values.get(key))]


def _varies(settings: Sequence[Setting], key: str) -> bool:
    return len({s.values[key] for s in settings}) > 1


def _following(settings: Sequence[Setting], x: str) -> set[str]:
    """The other numbers that are given together with `x`: each value of theirs at one x and at each x one value."""
    found = set()
    for key in settings[0].values:
        if key != x and len(_with(settings, key)) == len(_with(settings, x)) == len(settings):
            pairs = {(s.values[x], s.values[key]) for s in settings}
            if 1 < len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                found.add(key)
    return found


def _has_square(places: Iterable[tuple[float, float]]) -> bool:
    columns: dict[float, set[float]] = {}
    for column, row in places:
        columns.setdefault(column, set()).add(row)
    return any(len(a & b) > 1 for a, b in itertools.combinations(columns.values(), 2))
