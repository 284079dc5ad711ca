"""Options: each kind of value that does not fit its annotation is refused in one sentence, before its use."""

import math
import pickle
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Annotated, Literal, Protocol

import numpy as np
import pytest
import torch

from pds.errors import OptionError
from pds.options import Count, Range, checked, fitted, options, options_of, shown


@options
class Base:
    count: Count
    weight: Annotated[float, Range(0, 1)] = 0.5

    def __post_init__(self):
        assert type(self.weight) is float  # checked, and converted, before


@options
class Derived(Base):
    order: Literal[1, 2] = 2
    widths: Annotated[Sequence[int], Range(1, 64)] = (1, 2)
    end: Annotated[float, Range(above=0, infinity="no end")] | None = None
    flag: bool = False


def wrong_values(kind, rng):
    anything = [None, "abc", "\x1b[2J", [], {}, object(), b"1", 1j]
    numbers = [math.nan, -math.inf, -(10**400), -rng.random() - 1e-9, -rng.randrange(1, 99)]
    return {
        "count": [*anything, *numbers, math.inf, True, 0, 10**400, 1.5, 1.0, rng.randrange(1_000_001, 10**12)],
        "weight": [*anything, *numbers, math.inf, True, 10**400, 1 + rng.random() + 1e-9],
        "order": [*anything, *numbers, True, 1.0, 0, 3, "1"],
        "widths": ["12", 3, {1: 2}, [0], [1, True], [1, 2.5], [rng.randrange(65, 999)], [math.nan], None],
        "end": [v for v in [*anything, *numbers, True, 0, 0.0] if v is not None],
        "flag": [*anything, *numbers, 0, 1],
    }[kind]


@pytest.mark.parametrize("kind", ["count", "weight", "order", "widths", "end", "flag"])
def test_a_value_that_does_not_fit_is_refused_by_name_in_one_short_line(kind):
    rng, tried = random.Random(kind), 0
    while tried < 50:
        for value in wrong_values(kind, rng):
            tried += 1
            with pytest.raises(OptionError) as refused:
                Derived(**{"count": 3, kind: value})
            said = str(refused.value)
            assert said.startswith(f"{kind} must be ") and said.isprintable() and len(said) < 250, (value, said)
            assert str(refused.value.under("sampler")) == f"sampler.{said}"


def test_values_that_fit_are_kept_and_whole_numbers_become_floats():
    made = Derived(np.int64(7), 1, 1, [3, 4], math.inf, True)
    assert (made.count, made.weight, made.order, made.widths, made.end) == (7, 1.0, 1, [3, 4], math.inf)
    assert (type(made.count), type(made.weight)) == (int, float)


def test_arguments_of_a_function_are_checked_alike():
    @checked
    def double(x: Annotated[float, Range(0)], *rest: int, name: str = "") -> float:
        return 2 * x

    assert double(2, 3) == 4.0
    with pytest.raises(OptionError, match="x must be a number at least 0, got -1"):
        double(-1)
    with pytest.raises(OptionError, match="name must be text, got 3"):
        double(1, name=3)


def test_values_are_shown_short_and_without_control_characters():
    assert len(shown("a" * 10_000)) == 80
    assert shown("\x1b[2J\nerror: all is well").isprintable()


class Engine(Protocol):
    power: float

    @property
    def title(self) -> str: ...

    def run(self, steps: int) -> float: ...


@options
class Car:
    engine: Engine
    horn: Callable[[], None] = print


class Whole:
    power = 1.0
    run = None

    @property
    def title(self):
        raise AssertionError("what may be costly is not computed")


def test_an_object_has_all_that_its_protocol_asks_for():
    assert isinstance(Car(Whole()).engine, Whole)
    parts = ("power", "title", "run")
    for left_out in range(7):
        given = {name: 1 for i, name in enumerate(parts) if left_out >> i & 1}
        with pytest.raises(OptionError, match=r"^engine must be a Engine, got namespace\("):
            Car(SimpleNamespace(**given))
    assert Car(SimpleNamespace(power=1, title=2, run=3))
    with pytest.raises(OptionError, match=r"^horn must be a function, got "):
        Car(Whole(), object())


class Engine:
    power, title, run = 1.0, "", print


@options
class Boat:
    engine: Engine
    rooms: Literal[1, 2] = 1


class Raft(Boat):
    """Not decorated itself."""


@options
class Ferry(Raft):
    decks: Literal[1, 2] = 1


def test_a_subclass_is_checked_as_well():
    assert Raft(Engine(), 2).rooms == 2 and Ferry(Engine(), 2, 2).decks == 2
    for made, name in (
        (lambda: Raft(Engine(), 3), "rooms"),
        (lambda: Ferry(Engine(), 3), "rooms"),
        (lambda: Ferry(Engine(), 1, 3), "decks"),
    ):
        with pytest.raises(OptionError, match=f"^{name} must be one of 1, 2, got 3"):
            made()


def test_an_array_or_a_tensor_of_one_axis_is_a_list():
    numbers = Annotated[Sequence[int], Range(0, 9)]
    for given in (np.array([1, 2]), torch.tensor([1, 2])):
        assert fitted("labels", given, numbers) == [1, 2]
    for given in (np.array([[1, 2]]), torch.tensor([1.5]), torch.tensor(3), np.array([10])):
        with pytest.raises(OptionError, match=r"^labels must be"):
            fitted("labels", given, numbers)


def test_an_object_is_of_its_class_and_no_class():
    assert isinstance(Boat(Engine()).engine, Engine)
    for wrong in (Whole(), Engine, [], {}, {"power": 1}, np.zeros(2), lambda: None):
        with pytest.raises(OptionError, match=r"^engine must be a Engine, got "):
            Boat(wrong)
    with pytest.raises(OptionError, match=r"^engine must be a Engine, got <class"):
        Car(Whole)
    assert Car(Whole(), Whole).horn is Whole  # a class can be called


def test_an_array_is_no_choice():
    for wrong in (np.ones(2), np.ones(1), np.int64(1)):
        with pytest.raises(OptionError, match=r"^rooms must be one of 1, 2, got "):
            Boat(Engine(), wrong)


def test_the_options_of_a_class_or_a_function_are_its_arguments_with_their_ranges():
    def made(device, /, count: Count, *, end: float = math.inf, **rest):
        """Takes a device from its caller."""

    assert {name: option.default for name, option in options_of(Derived).items() if not option.required} == {
        **{"weight": 0.5, "order": 2, "widths": (1, 2), "end": None, "flag": False}
    }
    assert options_of(Derived)["weight"].annotation == Annotated[float, Range(0, 1)]
    assert {name: option.required for name, option in options_of(made).items()} == {"count": True, "end": False}


def test_a_refusal_survives_the_way_from_a_worker():
    refusal = OptionError("rho", "must be positive, got -1", {"rho": 7}).under("sampler")
    again = pickle.loads(pickle.dumps(refusal))
    assert (str(again), again.name, dict(again.fix)) == (str(refusal), "sampler.rho", {"sampler.rho": 7})
