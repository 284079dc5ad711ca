"""Group runs into settings, and settings into curves, heat maps and best α for each T, by their configurations alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from pds.evaluation.measures import BLOCKS, Comparison, compared
from pds.lab.report.runs import Run, Runs, differing, grouped, token
from pds.lab.runs import OF_T
from pds.lab.text import as_text, is_number, significant, with_decimals_of, with_error

T, ALPHA = "sampler.iterations", "filter.alpha"
_SYMBOLS = {T: "T", ALPHA: "α", "filter.lam": "λ", "filter.r": "r", "solenoid.omega": "ω", "sampler.step_size": "α/σ²"}
_PRECONDITIONER = ("filter.", "solenoid.")

Values = dict[str, Any]
Place = tuple[float, float]


class Number(NamedTuple):
    """A cell of a table, in a terminal and on the page."""

    text: str
    spread: str = ""  # behind ±: a deviation or an error
    kind: str = ""  # "best" of its column, "level" with it, "failing", "soft" or ""

    @classmethod
    def of(cls, text: str, spread: float | None, kind: str = "") -> Number:
        """A number with a spread, where it has one, to the same decimals."""
        return cls(text, "" if spread is None else with_decimals_of(text, spread), kind)

    def __str__(self) -> str:
        # Without spaces, so that five columns with deviations fit a terminal.
        text = "±".join(filter(None, (self.text, self.spread)))
        return {"best": f"**{text}**", "level": f"{text} ≈"}.get(self.kind, text)


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in their seed alone, one a seed, with their values of the swept keys.

    `quantity` is the measured quantity: a metric by its full name, or "seconds".
    """

    runs: tuple[Run, ...]
    quantity: str
    values: Values = field(default_factory=dict)

    @property
    def result(self) -> Values:
        """The result of the first seed."""
        return self.runs[0].result

    @property
    def vanilla(self) -> bool:
        return self.runs[0].vanilla

    def at(self, key: str) -> float:
        """Return the value of a swept key, or the mean over the seeds of a number of the runs."""
        return self.values[key] if key in self.values else math.fsum(run.number(key) for run in self.runs) / len(self.runs)

    @cached_property
    def number(self) -> float:
        """The mean of `quantity` over the seeds."""
        return self.at(self.quantity)

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (of a sample, n - 1); None for a single seed."""
        squares = math.fsum((run.number(self.quantity) - self.number) ** 2 for run in self.runs)
        return math.sqrt(squares / (len(self.runs) - 1)) if len(self.runs) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of `number`: over the seeds, or of the single seed's images; None if it is not known."""
        known = self.result.get("errors", {}).get(self.quantity)
        return known if self.spread is None else self.spread / math.sqrt(len(self.runs))

    @property
    def shown(self) -> Number:
        """`number` with three significant digits, and its deviation over the seeds."""
        return Number.of(significant(self.number, self.error), self.spread)

    @property
    def over_seeds(self) -> str:
        """`number` with its deviation and the count of seeds, in a sentence."""
        return f"{with_error(self.shown.text, self.spread)} (mean of {len(self.runs)} seeds)"

    def like(self, other: Setting) -> bool:
        """Whether kind, sampler, NFE and some seed are those of `other`."""
        kinds = {(s.runs[0].kind, s.result["sampler"], s.result["nfe"]) for s in (self, other)}
        return len(kinds) == 1 and any(a.result["seed"] == b.result["seed"] for a in self.runs for b in other.runs)

    def against(self, other: Setting) -> Comparison | None:
        """Return the comparison with another setting, paired over the blocks of the seeds of both, or over the seeds."""
        first, second = ({run.result["seed"]: run for run in setting.runs} for setting in (self, other))
        pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
        mine, others = ([run.number(self.quantity) for run in runs] for runs in ([a for a, _ in pairs], [b for _, b in pairs]))
        blocks = [(a.blocks(self.quantity), b.blocks(self.quantity)) for a, b in pairs]
        if pairs and all(len(of_run) == BLOCKS for both in blocks for of_run in both):
            return compared(mine, others, blocks)
        return compared(mine, others) if len(pairs) > 1 else None


class Line(NamedTuple):
    """Settings by rising values of some keys, equal in all except these, the seed and the keys that follow from these."""

    label: str
    settings: list[Setting]

    @property
    def vanilla(self) -> bool:
        return all(setting.vanilla for setting in self.settings)

    @property
    def lowest(self) -> float:
        return min(setting.number for setting in self.settings)


class Curves(NamedTuple):
    """Curves over a swept key x."""

    lines: list[Line]
    levels: list[Line]  # one vanilla setting each, without x, that agrees with some line in all else
    left_out: int  # lines that are not among `lines`


class HeatMap(NamedTuple):
    """Cells over two swept numbers, all else held."""

    lowest: float
    held: str  # the common settings of all cells, short
    cells: dict[Place, Setting]
    lost: dict[Place, str]  # "failed", "damaged" or "skipped" in cells without a setting


class Best(NamedTuple):
    """The best α of a grid at one T, and its neighbours, between which the optimum lies; at an edge of the grid α itself."""

    iterations: float
    alpha: float
    below: float
    above: float

    @property
    def inside(self) -> bool:
        return self.below < self.alpha < self.above


@dataclass(frozen=True)
class Comparable:
    """Finished runs of one kind with comparable distances of one metric (the name has the image count).

    `lost` are all failed, damaged and skipped runs of the group.
    """

    quantity: str
    runs: Runs
    lost: Runs

    @cached_property
    def keys(self) -> list[str]:
        """The dotted keys on which the configurations differ, of those that count."""
        own = [run.values for run in self.runs]
        pairs = {key: {(token(values.get(T)), token(values[key])) for values in own if key in values} for key in OF_T}
        return [key for key in differing(own) if key not in OF_T or len(dict(pairs[key])) < len(pairs[key])]

    @cached_property
    def settings(self) -> list[Setting]:
        """The runs by all except their seed; of several with one seed the first counts."""
        return [Setting(one_a_seed(runs), self.quantity, values) for values, runs in self.repeats]

    @cached_property
    def repeats(self) -> list[tuple[Values, list[Run]]]:
        """The values of each setting with all its runs."""
        groups: dict[Any, tuple[Values, list[Run]]] = {}
        for run in self.runs:
            values = {key: run.values[key] for key in self.keys if key in run.values}
            groups.setdefault(_key(values), (values, []))[1].append(run)
        return list(groups.values())

    @cached_property
    def axes(self) -> list[str]:
        """The swept numbers, T first, without those that are given together with T."""

        def swept(key: str) -> bool:
            varied = [family for family in self._families(key) if len({s.values[key] for s in family}) > 1]
            return any(key not in _following(family, T) for family in varied)

        return sorted(filter(swept, self.keys), key=lambda key: key != T)

    def _families(self, *keys: str) -> list[list[Setting]]:
        """Group the settings that have numbers for all of `keys`; all values in a group that are no numbers are equal."""
        found = _with(self.settings, *keys)
        return list(grouped((_key({k: "" if is_number(v) else v for k, v in s.values.items()}), s) for s in found).values())

    def _apart(self, *keys: str) -> Iterator[Line]:
        """Group the settings that agree except in `keys` and the keys that follow from them."""
        for family in self._families(*keys):
            follow = set().union(*(_following(family, key) for key in keys))
            groups = grouped((_key({k: v for k, v in s.values.items() if k not in {*keys, *follow}}), s) for s in family)
            for group in groups.values():
                yield Line(self.label(group, keys, follow), sorted(group, key=lambda s: [s.values[key] for key in keys]))

    def label(self, settings: Sequence[Setting], without: Iterable[str] = (), following: Iterable[str] = ()) -> str:
        """Name `settings` by the values that tell them from others: "PDS α=5", "vanilla T=50"."""
        words, values = ["vanilla" if all(s.vanilla for s in settings) else "PDS"], settings[0].values
        for key in sorted(values.keys() - set(without), key=lambda k: (not k.startswith(_PRECONDITIONER), self.keys.index(k))):
            part = key.startswith(_PRECONDITIONER)
            several = len({token(s.values[key]) for s in self.settings if key in s.values}) > 1
            if key.endswith("_target_"):
                continue
            if key in following:
                words += [f"{symbol(key)} by {'/'.join(map(symbol, without))}"] if part else []
            elif key == "solenoid.operator" or (part and is_number(values[key])) or several:
                bare = isinstance(values[key], str) and key != ALPHA
                words.append(as_text(values[key]) if bare else f"{symbol(key)}={as_text(values[key])}")
        several = len({s.result["sampler"] for s in self.settings}) > 1
        return " ".join(words) + (f", {settings[0].result['sampler']}" if several else "")

    def _order(self, setting: Setting, *without: str) -> list[tuple[bool, float, str]]:
        values = [setting.values.get(key) for key in self.keys if key not in without]
        return [(not is_number(v), float(v or 0) if is_number(v) else 0.0, str(v)) for v in values]

    def curves(self, x: str, most: int = 10) -> Curves | None:
        """Return the curves over `x`; None without a line.

        Of more than `most` lines those with the lowest numbers are kept, single points last. Neither vanilla nor preconditioned
        lines crowd out the others.
        """
        lines = list(self._apart(x))
        if all(len(line.settings) == 1 for line in lines):
            return None
        lines.sort(key=lambda line: (len(line.settings) == 1, line.lowest))
        vanilla, pds = ([line for line in lines if line.vanilla is kind] for kind in (True, False))
        kept = vanilla[: max(most // 2, most - len(pds))] + pds[: max(most - most // 2, most - len(vanilla))]
        kept.sort(key=lambda line: (not line.vanilla, self._order(line.settings[0], x)))

        def rest(setting: Setting) -> Values:
            return {k: v for k, v in setting.values.items() if k != x and not k.startswith(_PRECONDITIONER)}

        beside = [rest(setting) for line in kept for setting in line.settings]
        alone = [s for s in self.settings if s.vanilla and x not in s.values and rest(s) in beside]
        levels = [Line(self.label([s]), [s]) for s in sorted(alone, key=self._order)]
        return Curves(kept, levels, len(lines) - len(kept))

    def heat_maps(self, x: str, y: str, most: int = 6) -> tuple[list[HeatMap], int]:
        """Return a map with at least 2 x 2 filled cells for each value of all else, and the number of maps left out.

        Of more than `most` maps those with the lowest numbers are kept.
        """

        def by_place(found: Sequence[Any]) -> dict[Place, Any]:
            return {(float(one.values[x]), float(one.values[y])): one for one in found}

        maps = []
        for line in self._apart(x, y):
            cells = by_place(line.settings)
            columns = grouped(cells).values()
            if any(len({*rows} & {*others}) > 1 for rows, others in itertools.combinations(columns, 2)):
                beside = by_place(self._lost_beside(line.settings[0], x, y))
                lost = {at: beside[at].state for at in beside if at not in cells}
                maps.append(HeatMap(line.lowest, self._held(line, x, y), cells, lost))
        kept = sorted(maps, key=lambda found: found.lowest)[:most]
        kept.sort(key=lambda found: self._order(next(iter(found.cells.values())), x, y))
        return kept, len(maps) - len(kept)

    def _held(self, line: Line, *without: str) -> str:
        """Add T and the sampler to a label: a reader needs them even if the whole group has the same."""
        held, sampler = line.label.removeprefix("PDS").strip(" ,"), line.settings[0].result["sampler"]
        lengths = {s.at("iterations") for s in line.settings} if T not in {*without, *self.keys} else set()
        steps = f"T={as_text(*lengths)}" if len(lengths) == 1 else ""
        return ", ".join(filter(None, [held, steps, "" if sampler in held else sampler]))

    def _lost_beside(self, setting: Setting, *keys: str) -> list[Run]:
        """Return the lost runs that have numbers for `keys` and, as far as is known, the values of `setting` for all else."""
        shared = {k: v for k, v in self.runs.runs[0].values.items() if k not in {*self.keys, *OF_T}}
        alike = {k: token(v) for k, v in {**shared, **setting.values}.items() if k not in keys}
        lost = _with(self.lost, *keys)
        return [run for run in lost if all(k not in run.values or token(run.values[k]) == v for k, v in alike.items())]

    def best_alphas(self) -> list[tuple[str, list[Best]]]:
        """Return the best α of each T with several α, by label of all else; a label needs two such T."""
        found = []
        for line in self._apart(T, ALPHA):
            bests = []
            for t, grid in grouped((s.values[T], s) for s in line.settings).items():
                alphas, i = [float(s.values[ALPHA]) for s in grid], grid.index(min(grid, key=lambda s: s.number))
                if len(grid) > 1:
                    bests.append(Best(float(t), alphas[i], alphas[max(i - 1, 0)], alphas[min(i + 1, len(alphas) - 1)]))
            found += [(line.label, bests)] if len(bests) > 1 else []
        return found

    def references(self) -> list[Place]:
        """Return the pairs (α_ref, T_ref) of the configurations, for α ∝ T."""
        keys = ("filter.reference.alpha", "filter.reference.iterations")
        pairs = (map(run.flat.get, keys) for run in self.runs)
        return sorted({(float(a), float(t)) for a, t in pairs if is_number(a) and is_number(t)})


def comparables(runs: Runs) -> list[Comparable]:
    """Part the finished runs by comparable distances, in the order of the table."""
    lost = runs.where(lambda run: run.state in ("failed", "damaged", "skipped"))
    known = [run for run in runs.done if run.config]
    kinds = grouped(((name, run.kind), run) for name in runs.metrics for run in known if name in run.measures)
    return [Comparable(name, Runs(tuple(alike)), lost) for (name, _), alike in kinds.items()]


def one_a_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the first run of each seed."""
    found: dict[int, Run] = {}
    for run in runs:
        found.setdefault(run.result["seed"], run)
    return tuple(found.values())


def repeated(settings: Iterable[Setting]) -> bool:
    """Return whether some setting has more than one seed."""
    return any(len(setting.runs) > 1 for setting in settings)


def symbol(key: str) -> str:
    """Return the papers' symbol of a key, or its own name."""
    return _SYMBOLS.get(key, key.removesuffix("._target_").rpartition(".")[2])


def _key(values: Values) -> frozenset[tuple[str, float | str]]:
    return frozenset((key, token(value)) for key, value in values.items())


def _with(items: Iterable[Any], *keys: str) -> list[Any]:
    """Return the settings or runs that have numbers for all of `keys`."""
    return [item for item in items if all(is_number(item.values.get(key)) for key in keys)]


def _following(settings: Sequence[Setting], x: str) -> set[str]:
    """Return the other keys whose numbers pair one to one with those of `x`."""
    numbers = [key for key in settings[0].values if key != x and len(_with(settings, x, key)) == len(settings)]
    pairs = {key: {(s.values[x], s.values[key]) for s in settings} for key in numbers}
    return {key for key, both in pairs.items() if 1 < len(both) == len(dict(both)) == len({y for _, y in both})}
