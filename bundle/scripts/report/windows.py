"""Which intensities are shown as black and as white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Window", "display_window"]

AIR = -500  # Hounsfield units: nothing but CT goes below that
SAMPLES = 1_000_000
# Level below which the segmented tissue lies, window name, level and width in Hounsfield units.
CT_WINDOWS = ((-300, "lung", -600, 1500), (250, "soft tissue", 40, 400), (np.inf, "bone", 400, 1800))


@dataclass(frozen=True)
class Window:
    """Intensities ``low`` (black) to ``high`` (white), and what to call them."""

    low: float
    high: float
    text: str

    def grey(self, plane: np.ndarray) -> np.ndarray:
        """A plane (rows, columns) as 0 to 1, or its first three channels as RGB."""
        scaled = np.nan_to_num(np.clip((plane - self.low) / (self.high - self.low), 0, 1))
        return scaled[..., :3] if scaled.ndim == 3 and scaled.shape[-1] >= 3 else scaled.reshape(scaled.shape[:2])


def display_window(image: np.ndarray, foreground: np.ndarray) -> Window:
    """A window that suits what was segmented on CT, the 0.5th to 99.5th percentile on everything else.

    Args:
        image: (right, anterior, superior), the channel that is shown; or with three channels behind.
        foreground: (right, anterior, superior), boolean.
    """
    stride = max(1, image.size // SAMPLES)
    sample = image.ravel()[::stride]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return Window(0.0, 1.0, "")
    if image.ndim == 3 and sample.min() < AIR:
        inside = image[foreground]
        inside = inside[np.isfinite(inside)]
        typical = float(np.median(inside)) if inside.size else 0.0
        name, level, width = next((n, lev, w) for limit, n, lev, w in CT_WINDOWS if typical < limit)
        return Window(level - width / 2, level + width / 2, f"{name} window: L {level} W {width}")
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if high <= low:
        low, high = float(sample.min()), float(sample.max())
    return Window(low, high if high > low else low + 1, "")
