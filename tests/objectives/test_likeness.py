"""PSNR and SSIM against computations by hand."""

import numpy as np
import pytest

from oculi.objectives.likeness import LUMA, SIGMA, WINDOW, psnr, ssim

DICE = np.random.default_rng(0)


def noise(count: int = 2, height: int = 16, width: int = 14) -> np.ndarray:
    return DICE.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_psnr_by_hand() -> None:
    wanted = np.full((2, 4, 4, 3), 100, np.uint8)
    found = wanted.copy()
    found[0] += 10  # a mean squared error of 100
    found[1, 0, 0, 0] += 48  # of 48: one of 48 values
    np.testing.assert_allclose(psnr(found, wanted), 10 * np.log10([65025 / 100, 65025 / 48]))
    assert np.isinf(psnr(wanted, wanted)).all()
    assert psnr(np.uint8([[[[0, 0, 0]]]]), np.uint8([[[[255, 255, 255]]]])) == 0  # no overflow


def test_ssim_window_by_window() -> None:
    a, b = noise(), noise()
    b[1] = np.clip(a[1].astype(int) + 9, 0, 255)
    line = np.exp(-0.5 * ((np.arange(WINDOW) - 5) / SIGMA) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2
    wanted = []
    for x, y in zip(a @ LUMA, b @ LUMA, strict=True):
        values = []
        for top in range(x.shape[0] - WINDOW + 1):
            for left in range(x.shape[1] - WINDOW + 1):
                p, q = (z[top : top + WINDOW, left : left + WINDOW] for z in (x, y))
                mp, mq = (p * weights).sum(), (q * weights).sum()
                vp, vq = ((p - mp) ** 2 * weights).sum(), ((q - mq) ** 2 * weights).sum()
                both = ((p - mp) * (q - mq) * weights).sum()
                c1, c2 = 6.5025, 58.5225
                values.append(
                    (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
        wanted.append(np.mean(values))
    np.testing.assert_allclose(ssim(a, b), wanted, rtol=1e-9)
    np.testing.assert_allclose(ssim(a, a), 1.0)
    assert ssim(a, b)[0] < 0.2 < 0.9 < ssim(a, b)[1]


def test_pictures_smaller_than_the_window() -> None:
    with pytest.raises(ValueError, match="11 pixels each way"):
        ssim(noise(1, 10, 40), noise(1, 10, 40))
