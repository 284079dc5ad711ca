"""Every choice of every group, and every program: an invalid value of any kind is refused by name, at once."""

import inspect
import math
import random
import time
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from pds.errors import OptionError, PDSError
from pds.lab.schema import CHOICES, PROGRAMS, PartialTarget, is_plain
from pds.options import Length, Range, fitted, options_of
from pds.processes.forward import VarianceExploding

# Values of options without a default, and small values of networks.
VALID: dict[str, Any] = {
    "shape": [1, 8, 8],
    "process": VarianceExploding(),
    "width": 4,
    "blocks": 1,
    "multipliers": [1],
    "attention": [],
    "name": "images",
    "root": "nowhere",
    "resolution": 8,
    "preprocessing": "ncsnv2",
    "category": "church",
    "source": lambda **form: lambda: None,
    "iterations": 50,
    "reference": {},
    "scheduler": "DDIMScheduler",
    "make": "math:sqrt",
    "budgets": [10],
    "predicts": "score",
    "data_range": [0.0, 1.0],
    "checkpoint": None,
}
SPLITS = {"FFHQ": "all"}


def targets():
    for choices in CHOICES.values():
        for choice in choices.values():
            yield choice.target if isinstance(choice, PartialTarget) else choice
    yield from (program for program, _, _ in PROGRAMS.values())


TARGETS = sorted(set(targets()), key=lambda target: target.__name__)
every = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)


def annotations_of(target, plain):
    """Name and annotation of each option whose value is plain, or of each that is an object."""
    return [(name, option.annotation) for name, option in options_of(target).items() if is_plain(option.annotation) == plain]


def valid(target):
    """Arguments that the target takes, for its options without a default and those that would cost time."""
    stated = options_of(target)
    given = {name: value for name, value in VALID.items() if name in stated and (stated[name].required or name == "width")}
    if target.__name__ == "ncsnpp":
        given |= {name: VALID[name] for name in ("blocks", "multipliers", "attention")}
    if "split" in stated and stated["split"].required:
        given["split"] = SPLITS.get(target.__name__, "train")
    return given


def wrong_values(rng):
    """At least fifty wrong values, of every kind that people and programs give."""
    fixed = [True, False, None, "", "abc", "\x1b[2J", "1", "nan", b"1", 1j, object(), {}, {1: 2}, set(), lambda: 0]
    numbers = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-320, -1e-320, 0, -0.0, 0.5]
    numbers += [10**12, -(10**12), 10**400, -(10**400)]
    numbers += [sign * rng.random() * 10.0 ** rng.randrange(-300, 300) for sign in (-1, 1) for _ in range(8)]
    numbers += [rng.randrange(-(10**20), -1) for _ in range(4)] + [rng.randrange(10**9, 10**30) for _ in range(4)]
    lists = [[value] for value in (None, "a", True, math.nan, math.inf, -1, 1e308, 10**400, [1])]
    return [*fixed, *numbers, *lists, [], (), list(range(10_000)), range(3)]


def by_position(target):
    """Stand-ins for the arguments of a caller: a data set, a model."""
    parameters, kinds = inspect.signature(target).parameters.values(), get_type_hints(target)
    return [object.__new__(kinds[p.name]) for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]


def fits(name, value, annotation):
    try:
        fitted(name, value, annotation)
    except OptionError:
        return False
    return True


def refusal(target, arguments):
    """The error by which a target refuses its arguments, if it does."""
    try:
        target(*by_position(target), **arguments)
    except PDSError as error:
        return error
    return None


@every
def test_what_an_option_cannot_be_is_refused_by_name_at_once(target):
    base, takes_others = valid(target), bool(by_position(target))
    for name, annotation in annotations_of(target, plain=True):
        values = wrong_values(random.Random(f"{target.__name__}.{name}"))
        assert len(values) >= 50
        refused = 0
        for value in values:
            begun = time.process_time()
            wrong = not fits(name, value, annotation)
            if takes_others and not wrong:
                continue
            error = refusal(target, base | {name: value})
            assert time.process_time() - begun < 5, (name, value)
            said = str(error or "")
            assert said.isprintable() and len(said) < 500, (name, value, said)
            if wrong:
                refused += 1
                assert isinstance(error, OptionError) and error.name == name, (name, value)
        assert refused >= 20, name


@every
def test_plain_data_are_no_object(target):
    for name, annotation in annotations_of(target, plain=False):
        for value in (True, 0, 7, -1e12, math.nan, 10**400, "", "abc", b"x", 1j):
            if not fits(name, value, annotation):
                with pytest.raises(OptionError) as error:
                    target(*by_position(target), **valid(target) | {name: value})
                assert error.value.name == name, value
        assert annotation is Any or not any(fits(name, value, annotation) for value in (7, math.nan)), name


def limits(annotation, found=()):
    """Every number type in an annotation, with the limits around it."""
    if get_origin(annotation) is Annotated:
        kind, *more = get_args(annotation)
        yield from limits(kind, (*found, *more))
    elif annotation in (int, float):
        yield annotation, found
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from limits(part, found)


def test_every_number_has_a_range_and_every_count_an_end():
    found = [(target.__name__, name, limits(kind)) for target in TARGETS for name, kind in annotations_of(target, plain=True)]
    numbers = [(owner, name, kind, around) for owner, name, within in found for kind, around in within]
    assert len(numbers) > 100
    for owner, name, kind, around in numbers:
        ranges = [limit for limit in around if isinstance(limit, Range)]
        assert ranges, f"{owner}.{name}: {kind.__name__} without a range"
        assert kind is float or math.isfinite(ranges[0].high), f"{owner}.{name}"


def test_every_default_is_one_that_its_own_statement_takes():
    for target in TARGETS:
        for name, option in options_of(target).items():
            if not option.required:
                fitted(f"{target.__name__}.{name}", option.default, option.annotation)


def test_a_length_is_part_of_the_statement():
    with pytest.raises(OptionError, match="a list of 3 whole numbers from 1 to 9, got"):
        fitted("shape", [1, 2], Annotated[list[int], Range(1, 9), Length(3, 3)])
    with pytest.raises(OptionError, match="a list of 1 to 2 numbers"):
        fitted("gammas", [], Annotated[list[float] | tuple[float, ...], Length(1, 2)])
