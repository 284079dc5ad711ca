"""One statement of each option: its annotation gives type and range, and one check refuses other values.

    @options
    class EDM(Sampler):
        S_churn: Annotated[float, Range(0)] = 0.0
        order: Literal[1, 2] = 2

`@options` makes a frozen dataclass whose values are checked when it is made. `@checked` does the same for the arguments of a
function or an `__init__`. `pds.lab.config` derives the configuration's schema from the same annotations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

from pds.errors import OptionError, escaped

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """The values that a number may have; infinity only if `infinity` gives it a meaning.

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
        # Comparisons work for whole numbers too large for a float; nan fails each of them.
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


@dataclass(frozen=True)
class Length:
    """How many items a list may have."""

    low: int = 1
    high: int = 4096

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Said:
    """The valid values of an option in words, if its type describes them poorly."""

    words: str


@dataclass(frozen=True)
class Search:
    """The values of an option that a search tries: numbers between two ends, or every choice of a `Literal`.

    Attributes:
        low, high: the ends; a `Literal` has none.
        log: spread evenly in the logarithm.
        level: whether it is a noise level. The ends are then in units of the width of the data range, and are cut to the levels
            of the process. So they hold for any network.
        auto: whether the command line takes "auto", a first guess for the network (`pds.evaluation.first_guess`).
    """

    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    level: bool = False
    auto: bool = False


MOST = 1_000_000
"""The largest count of iterations, steps and levels. A larger one is a slip, and would fail only after hours."""

Count = Annotated[int, Range(1, MOST)]
Positive = Annotated[float, Range(above=0, high=1e30)]
NonNegative = Annotated[float, Range(0, 1e30)]
Seed = Annotated[int, Range(0, 2**64 - 1)]
Shape = Annotated[Sequence[int], Range(1, 16_384), Length(3, 3)]
"""(C, H, W) of images."""


@dataclass_transform(frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are checked against their annotations, before its own `__post_init__`."""
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        # The check of a base class runs through super(), on fields that this loop has already seen. A subclass that is not
        # decorated has the check of the nearest class that is.
        if next(kind for kind in type(self).__mro__ if "__options__" in vars(kind)) is made:
            hints = _hints(made)
            for field in dataclasses.fields(made):
                if field.init:
                    object.__setattr__(self, field.name, fitted(field.name, getattr(self, field.name), hints[field.name]))
        if own is not None:
            own(self)
        else:
            inherited = getattr(super(made, self), "__post_init__", None)
            if inherited is not None:
                inherited()

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    made: Any = dataclass(frozen=True)(cls)
    made.__options__ = True
    return made


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with a check that refuses arguments that do not fit their annotations."""
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
        default: `inspect.Parameter.empty` if there is none.
    """

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is inspect.Parameter.empty


@functools.cache
def options_of(target: Callable[..., Any]) -> Mapping[str, Option]:
    """The options of a class or a function, by name: its arguments, except the positional-only ones."""
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
    kind: Any = target
    own = kind.__init__ if isinstance(target, type) and not dataclasses.is_dataclass(target) else target
    return typing.get_type_hints(own, include_extras=True)


class _UnfitError(Exception):
    """A value does not fit an annotation."""


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """`value` if it fits its annotation; a whole number becomes a float if the annotation is float.

    Raises:
        OptionError: the value does not fit; the sentence has the valid values.
    """
    if get_origin(annotation) in (dict, Mapping) and isinstance(value, Mapping):
        return {key: fitted(f"{name}.{key}", item, get_args(annotation)[1]) for key, item in value.items()}
    try:
        return _fitted(value, annotation)
    except _UnfitError:
        raise OptionError(name, f"must be {described(annotation)}, got {shown(value)}") from None


def _fitted(value: Any, annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        value = _fitted(value, arguments[0])
        _require(all(_holds(limit, value) for limit in arguments[1:]))
        return value
    if origin is Literal:
        _require(any(type(value) is type(choice) and value == choice for choice in arguments))
        return value
    if origin in (Union, types.UnionType):
        for choice in arguments:
            with contextlib.suppress(_UnfitError):
                return _fitted(value, choice)
        raise _UnfitError
    if annotation is int:
        _require(isinstance(value, numbers.Integral) and not isinstance(value, bool))
        return int(value)
    if annotation is float:
        _require(isinstance(value, numbers.Real) and not isinstance(value, bool))
        with contextlib.suppress(OverflowError):
            return float(value)
        raise _UnfitError
    if annotation in (bool, str, type(None), Path):
        _require(isinstance(value, annotation))
        return value
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):  # an array or a tensor
            value = value.tolist()
        _require(isinstance(value, Sequence) and not isinstance(value, (str, bytes)))
        if not arguments:
            return value
        kinds = arguments[:1] * len(value) if origin is not tuple or arguments[1:] == (Ellipsis,) else arguments
        _require(len(kinds) == len(value))
        return (tuple if origin is tuple or isinstance(value, tuple) else list)(map(_fitted, value, kinds))
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        _require(isinstance(value, Mapping))
        return value
    if annotation is Any:
        return value
    # Objects (networks, processes, functions). Plain data are never objects.
    _require(not isinstance(value, (bool, int, float, complex, str, bytes, type(None))))
    kind = origin or annotation
    # A class has the methods of its objects, and is none of them.
    _require(kind in (Callable, type) or not isinstance(value, type))
    _require(not isinstance(kind, type) or offers(value, kind))
    return value


def offers(value: Any, kind: Any) -> bool:
    """Whether a value is of a class, or has all that a protocol asks for."""
    if not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    parts = [vars(part) for part in kind.__mro__ if getattr(part, "_is_protocol", False) and part is not Protocol]
    asked = {name for part in parts for name in [*part, *part.get("__annotations__", {})]}
    # The class first: a property might compute.
    found = (hasattr(type(value), name) or hasattr(value, name) for name in asked if not name.startswith("_"))
    return all(found) and ("__call__" not in asked or callable(value))


def _require(fits: bool) -> None:
    if not fits:
        raise _UnfitError


def _holds(limit: object, value: Any) -> bool:
    if isinstance(limit, Length):
        return limit.low <= len(value) <= limit.high
    if isinstance(limit, Range):
        return all(limit.holds(number) for number in (value if isinstance(value, Sequence) else [value]) if number is not None)
    return True


WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null", Path: "a path"}


def described(annotation: Any) -> str:
    """Return the valid values of an option, to follow "must be"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        said = next((limit.words for limit in arguments[1:] if isinstance(limit, Said)), None) or described(arguments[0])
        if any(isinstance(limit, Length) for limit in arguments[1:]):
            length = next(limit for limit in arguments[1:] if isinstance(limit, Length))
            said = said.replace("a list of", f"a list of {length}").replace(f"{length} one of", f"{length} of")
        return " ".join([said, *(str(limit) for limit in arguments[1:] if isinstance(limit, Range))])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(described(choice) for choice in arguments if choice is not type(None)) or "null"
    if annotation in (list, tuple):
        return "a list"
    if origin is tuple and arguments[1:] != (Ellipsis,):
        return f"a list of {len(arguments)} {described(arguments[0]).removeprefix('a ').replace('number', 'numbers', 1)}"
    if origin in (list, tuple, Sequence):
        return f"a list of {described(arguments[0]).removeprefix('a ').replace('number', 'numbers', 1)}"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return "a table"
    if annotation in (int, float):
        return f"a {WORDS[annotation]}"
    if origin is Callable:
        return "a function"
    return WORDS.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}"


def _plain(bound: float) -> str:
    if isinstance(bound, int):
        return str(bound)
    return f"{bound:g}" if abs(bound) < 1e6 or bound != int(bound) or abs(bound) >= 1e15 else str(int(bound))


def shown(value: Any) -> str:
    """`value` in a message: cut where it is long, control characters escaped."""
    return escaped(repr(value), 80)
