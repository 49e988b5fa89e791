"""How like two pictures are. No scikit-image: it brings scipy for what are a few lines each.

Legend: N pictures, H x W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def psnr(found_NHW3: NDArray[np.generic], wanted_NHW3: NDArray[np.generic]) -> Floats:
    """Peak signal-to-noise ratio of each picture in dB, [N]; infinite for equal ones.

    Args:
        found_NHW3, wanted_NHW3: 0 to 255, of any dtype.
    """
    difference = found_NHW3.astype(float) - wanted_NHW3.astype(float)
    squared = (difference**2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        ratio: Floats = 10 * np.log10(255**2 / squared)
    return ratio


def ssim(found_NHW3: NDArray[np.generic], wanted_NHW3: NDArray[np.generic]) -> Floats:
    """Structural similarity of each picture's luminance, [N], at most 1.

    Wang et al. 2004 (IEEE Transactions on Image Processing 13): Gaussian window of 11 pixels, deviation
    1.5, K1 0.01, K2 0.03; the mean over windows that lie within the picture.

    Args:
        found_NHW3, wanted_NHW3: 0 to 255, at least 11 pixels each way.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    x, y = found_NHW3.astype(float) @ LUMA, wanted_NHW3.astype(float) @ LUMA
    if min(x.shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of {WINDOW} pixels each way")
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    found: Floats = likeness.mean((1, 2))
    return found


def _blurred(x_NHW: Floats) -> Floats:
    """Weighted means over all windows within each picture."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    windows = np.lib.stride_tricks.sliding_window_view
    down: Floats = windows(x_NHW, WINDOW, axis=1) @ weights
    found: Floats = windows(down, WINDOW, axis=2) @ weights
    return found
