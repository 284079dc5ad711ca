import itertools
import math
import re

import pytest
import torch
from conftest import Golden

from pds.errors import PDSError
from pds.processes.ladders import geometric_ladder, karras_levels, visit_levels


def test_published_ladders_and_step_sizes():
    golden = Golden("schedule/ncsn_family")
    for name, setting in golden.json("meta").items():
        if not isinstance(setting, dict) or "num_classes" not in setting:
            continue
        sigmas = geometric_ladder(setting["sigma_begin"], setting["sigma_end"], setting["num_classes"])
        torch.testing.assert_close(sigmas, golden[f"{name}/sigmas"].double(), rtol=1e-5, atol=0)
        step_size = setting["step_lr"] / sigmas[-1] ** 2
        torch.testing.assert_close(step_size * sigmas**2, golden[f"{name}/step_sizes"].double(), rtol=1e-5, atol=0)


def test_iterations_are_spread_over_levels():
    sigmas = geometric_ladder(1, 0.01, 10)
    assert visit_levels(sigmas, 20).tolist() == sigmas.repeat_interleave(2).tolist()
    assert visit_levels(sigmas, 10, 5).tolist() == [*[1.0] * 5, *[sigmas[-1].item()] * 5]
    few = visit_levels(sigmas, 4)
    assert few[0] == sigmas[0]
    assert few[-1] == sigmas[-1]
    assert set(few.tolist()) <= set(sigmas.tolist())


@pytest.mark.parametrize(
    ("iterations", "steps", "says"),
    [
        (25, None, "20, 30"),
        (25, 2, "20"),
        (3, 2, "nearest: 4"),
        (1, None, "nearest: 2"),
        (5, 5, "nearest: 10"),
    ],
)
def test_an_impossible_T_names_the_possible_ones(iterations, steps, says):
    with pytest.raises(PDSError, match=says) as error:
        visit_levels(geometric_ladder(1, 0.01, 10), iterations, steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("levels", [2, 3, 10])
def test_each_T_that_is_named_can_be_walked(levels):
    """As many steps a level as there are levels is one of the cases."""
    sigmas = geometric_ladder(1, 0.01, levels)
    for iterations, steps in itertools.product(range(1, 12 * levels), [None, 1, 2, 3, levels]):
        try:
            visit_levels(sigmas, iterations, steps)
        except PDSError as error:
            named = re.search(r"nearest: ([\d, ]+)", str(error))
            for nearest in named[1].split(", ") if named else []:
                visit_levels(sigmas, int(nearest), steps)
            assert named or steps > iterations > 1


def test_karras_levels():
    # Eq. 5 by hand: (80^(1/7) + i / 4 (0.002^(1/7) - 80^(1/7)))^7.
    expected = [80.0, 17.52783, 2.515219, 0.1697528, 0.002]
    assert karras_levels(0.002, 80.0, 5, 7.0).tolist() == pytest.approx(expected, rel=1e-4)
    assert karras_levels(1.0, 5.0, 5, 1.0).tolist() == pytest.approx([5, 4, 3, 2, 1])
    torch.testing.assert_close(karras_levels(0.01, 1.0, 9, 1e6), geometric_ladder(1.0, 0.01, 9), rtol=1e-4, atol=0)
    assert torch.equal(karras_levels(0.01, 1.0, 9, math.inf), geometric_ladder(1.0, 0.01, 9))
    assert karras_levels(0.01, 1.0, 1, 7.0).tolist() == [1.0]
