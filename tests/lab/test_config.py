"""From configuration nodes to objects: every refusal of a value names its key; our own defects stay tracebacks."""

import pytest
from omegaconf import OmegaConf

from pds.errors import OptionError, PDSError
from pds.lab.config import build, keyed
from pds.options import Count, options

RAISED = [
    TypeError,
    ValueError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
    MemoryError,
    AttributeError,
    KeyError,
    AssertionError,
]


@options
class Part:
    steps: Count = 1
    raises: int | None = None

    def __post_init__(self):
        if self.raises is not None:
            raise RAISED[self.raises]("no such thing")


@options
class Whole:
    part: Part
    size: Count = 1


def late(device, /, part: Part, size: int = 1):
    raise OptionError("steps", f"must be less on {device}")


def tree(part=(), target="Whole", **whole):
    def node(name, **values):
        return {"_target_": f"{__name__}.{name}", **values}

    return OmegaConf.create(
        {"outer": {"thing": node(target, part=node("Part", **{"steps": 1, **dict(part)}), **whole)}}
    ).outer.thing


def test_a_refused_option_is_named_by_its_key_however_deep():
    assert build(tree()).part.steps == 1
    with pytest.raises(OptionError, match=r"^outer\.thing\.size must be a whole number from 1 to 1000000, got 'x'$"):
        build(tree(size="x"))
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps must be a whole number from 1 to 1000000, got 0$"):
        build(tree({"steps": 0}))
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps must be less on cpu$"):
        build(tree(target="late"), "cpu")
    with pytest.raises(OptionError, match=r"^outer\.thing\.part\.steps is late$"), keyed(tree()), keyed(tree()):
        raise OptionError("steps", "is late")


@pytest.mark.parametrize("kind", range(len(RAISED)))
def test_what_python_or_torch_refuse_about_values_is_a_sentence_and_a_defect_is_not(kind):
    refused, about_values = RAISED[kind], kind < 6
    said = f"^outer.thing.part cannot be made of these values: {refused.__name__}: no such thing$" if about_values else "^"
    said = "^outer.thing.part needs more memory than there is: " if refused is MemoryError else said
    with pytest.raises(PDSError if about_values else refused, match=said):
        build(tree({"raises": kind}))


@pytest.mark.parametrize(
    ("target", "said"), [("nowhere.Thing", "outer.thing cannot be made: "), ("Whole", "unexpected keyword")]
)
def test_a_target_or_a_key_that_is_not_there_is_told(target, said):
    node = tree(other=1)
    if target != "Whole":
        node["_target_"] = target
    with pytest.raises(PDSError, match=said):
        build(node)
