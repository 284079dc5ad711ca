"""One statement of each option: its annotation gives type and range, and one check refuses what does not fit.

    @options
    class EDM(Sampler):
        S_churn: Annotated[float, Range(0)] = 0.0
        order: Literal[1, 2] = 2

`@options` makes a frozen dataclass whose values are checked when it is made. `@checked` does the same for the arguments of a
function or an `__init__`. `pds.lab.config` derives the configuration's schema from the same annotations.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, dataclass_transform, get_args, get_origin

from pds.errors import OptionError, escaped

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """The values that a number may have; an infinite one only if `infinity` gives it a meaning.

    Attributes:
        low, high: smallest and largest value.
        above, below: bounds that the value must not reach.
        infinity: what inf means, as in "no upper limit"; empty where inf is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    infinity: str = ""

    def holds(self, value: float) -> bool:
        """Whether the value is in the range."""
        if value == math.inf:
            return bool(self.infinity)
        # Comparisons alone, which whole numbers too large for a float survive; nan fails each of them.
        return self.low <= value <= self.high and self.above < value < self.below and value > -math.inf

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"from {_plain(self.low)} to {_plain(self.high)}" + self._meaning
        bounds = [
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        ]
        said = [f"{word} {_plain(bound)}" for word, bound in bounds if math.isfinite(bound)]
        return " and ".join(said or ["finite"]) + self._meaning

    @property
    def _meaning(self) -> str:
        return f", or inf ({self.infinity})" if self.infinity else ""


MOST = 1_000_000
"""The largest count of iterations, steps and levels: a larger one is a slip, and would only fail after hours."""

Count = Annotated[int, Range(1, MOST)]
Positive = Annotated[float, Range(above=0, high=1e30)]
NonNegative = Annotated[float, Range(0, 1e30)]
Seed = Annotated[int, Range(0, 2**64 - 1)]


@dataclass_transform(frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked against their annotations, before its own `__post_init__`."""
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        # A base class's own check runs through super(), on fields that this loop has seen already.
        if type(self) is made:
            hints = _hints(type(self))
            for field in dataclasses.fields(self):
                if field.init:
                    object.__setattr__(self, field.name, fitted(field.name, getattr(self, field.name), hints[field.name]))
        if own is not None:
            own(self)
        else:
            inherited = getattr(super(made, self), "__post_init__", None)
            if inherited is not None:
                inherited()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made = dataclass(frozen=True)(cls)
    return made


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which refuses arguments that do not fit their annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        hints = _hints(function)
        for name, value in given.arguments.items():
            if name in hints and signature.parameters[name].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                given.arguments[name] = fitted(name, value, hints[name])
        return function(*given.args, **given.kwargs)

    return call


class Option(NamedTuple):
    """One argument of a class or a function, as its signature states it.

    Attributes:
        annotation: its type, with its `Range` if it has one.
        default: `inspect.Parameter.empty` where there is none.
    """

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@functools.cache
def options_of(target: Callable[..., Any]) -> Mapping[str, Option]:
    """The options of a class or a function, by name: its arguments, except those that its caller gives by position alone."""
    hints = _hints(target)
    return {
        name: Option(hints.get(name, Any), _default(target, parameter))
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }


def _default(target: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if dataclasses.is_dataclass(target):
        field = next((field for field in dataclasses.fields(target) if field.name == parameter.name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


@functools.cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class's fields, or of the arguments of a function or an `__init__`, resolved."""
    own = target.__init__ if isinstance(target, type) and not dataclasses.is_dataclass(target) else target
    return typing.get_type_hints(own, include_extras=True)


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """`value` if it fits its annotation, a whole number as float where a float is due.

    Raises:
        OptionError: it does not fit; the sentence says what would.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        value = fitted(name, value, arguments[0])
        for limit in arguments[1:]:
            if isinstance(limit, Range):
                _within(name, value, limit)
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise OptionError(name, f"must be one of {', '.join(map(str, arguments))}, got {shown(value)}")
        return value
    if origin in (Union, types.UnionType):
        return _any_of(name, value, arguments)
    if annotation is bool:
        return _of(name, value, isinstance(value, bool), "true or false")
    if annotation is int:
        return int(_of(name, value, isinstance(value, numbers.Integral) and not isinstance(value, bool), "a whole number"))
    if annotation is float:
        _of(name, value, isinstance(value, numbers.Real) and not isinstance(value, bool), "a number")
        return _float(name, value)
    if annotation is str:
        return _of(name, value, isinstance(value, str), "text")
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        return _sequence(name, value, arguments)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        _of(name, value, isinstance(value, Mapping), "a table")
        return {key: fitted(f"{name}.{key}", item, arguments[1]) for key, item in value.items()} if arguments else value
    # Objects (networks, processes, callables) are checked where they are used: their types are protocols.
    return value


def _any_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    problems = []
    for choice in choices:
        if choice is type(None):
            if value is None:
                return None
            continue
        try:
            return fitted(name, value, choice)
        except OptionError as error:
            problems.append(error)
    raise problems[0] if problems else OptionError(name, f"must be left out, got {shown(value)}")


def _sequence(name: str, value: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise OptionError(name, f"must be a list, got {shown(value)}")
    if not arguments:
        return value
    if get_origin(tuple[arguments]) is tuple and len(arguments) > 1 and arguments[1] is not Ellipsis:
        if len(value) != len(arguments):
            raise OptionError(name, f"must have {len(arguments)} values, got {shown(value)}")
        return type(value)(fitted(name, item, kind) for item, kind in zip(value, arguments, strict=True))
    return type(value)(fitted(name, item, arguments[0]) for item in value)


def _within(name: str, value: Any, limit: Range) -> None:
    for number in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if isinstance(number, (int, float)) and not limit.holds(number):
            raise OptionError(name, f"must be {limit}, got {shown(number)}")


def _of(name: str, value: Any, right: bool, what: str) -> Any:
    if not right:
        raise OptionError(name, f"must be {what}, got {shown(value)}")
    return value


def _float(name: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise OptionError(name, f"must be a number that fits a float, got {shown(value)}") from None


def _plain(bound: float) -> str:
    return f"{bound:g}" if abs(bound) < 1e6 or bound != int(bound) or abs(bound) >= 1e15 else str(int(bound))


def shown(value: Any, most: int = 80) -> str:
    """`value` in a message: cut where it is long, control characters escaped."""
    return escaped(repr(value), most)
