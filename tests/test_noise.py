import pytest
import torch

import pds.noise
from pds.noise import ImageNoise, philox


def test_philox_equals_the_published_known_answers():
    words = lambda *hexes: tuple(torch.tensor([int(h, 16)]) for h in hexes)  # noqa: E731
    full = "ffffffff"
    answers = [
        (words("0", "0", "0", "0"), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (words(full, full, full, full), (int(full, 16),) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            words("243f6a88", "85a308d3", "13198a2e", "03707344"),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, expected in answers:
        assert " ".join(f"{word.item():08x}" for word in philox(counter, key)) == expected


def test_an_image_keeps_its_noise_in_any_batch_and_shares_none():
    shape = (3, 5, 7)
    whole = ImageNoise(7, torch.arange(6), shape)
    part = ImageNoise(7, torch.tensor([4, 1]), shape)
    for _ in range(3):
        z, y = whole.normal(), part.normal()
        assert torch.equal(y, z[[4, 1]])
    draws = torch.stack([ImageNoise(seed, torch.arange(2), shape).normal() for seed in (0, 1, 1 << 40)]).flatten()
    assert draws.unique().numel() > 0.999 * draws.numel()


@pytest.mark.parametrize("at_once", [1, 500])
def test_draws_made_at_once_are_those_made_one_by_one(monkeypatch, at_once):
    def draws():
        noise = ImageNoise(3, torch.tensor([5, 2]), (3, 5, 7))
        drawn = [noise.uniform() if draw == 4 else noise.normal() for draw in range(9)]
        assert noise.draws == 9
        return drawn

    made = draws()
    made[2].zero_()  # a draw is its owner's
    monkeypatch.setattr(pds.noise, "_AT_ONCE", {"cpu": at_once})
    again = draws()
    assert all(torch.equal(y, z) for draw, (y, z) in enumerate(zip(again, made, strict=True)) if draw != 2)


def test_normal_and_uniform_have_their_moments():
    noise = ImageNoise(0, torch.arange(400), (1, 28, 28))
    z, u = noise.normal().double(), noise.uniform().double()
    n = z.numel() ** 0.5
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((z**power).mean() - moment) < 5 * spread / n
    assert (u >= 0).all()
    assert (u < 1).all()
    assert abs(u.mean() - 0.5) < 5 * 12**-0.5 / n
    neighbours = (z.flatten(1)[:, 1:] * z.flatten(1)[:, :-1]).mean()
    across_images = (z[1:] * z[:-1]).mean()
    across_draws = (z * noise.normal()).mean()
    assert max(abs(neighbours), abs(across_images), abs(across_draws)) < 5 / n
