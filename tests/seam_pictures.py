"""Pictures to measure seams on, made by rule: smooth, natural-like, and both side by side, with or without a grid."""

import numpy as np

SIZE, PERIOD = 256, 32


def gradient(size: int = SIZE) -> np.ndarray:
    """[H, W, 3] in 0..1: a sky, brighter below, a little bent."""
    y, x = np.mgrid[0:size, 0:size] / size
    base = 0.35 + 0.4 * y + 0.08 * x + 0.05 * np.sin(2 * x + 3 * y)
    return np.stack([base * 0.8, base * 0.9, base], axis=-1)


def natural(size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Like a photograph: a spectrum that falls with the frequency, a few sharp edges, and a sensor's noise."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequencies[0, 0] = 1
    field = np.real(np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequencies**1.5))
    field /= field.std()
    y, x = np.mgrid[0:size, 0:size]
    field += np.where((x - 0.6 * size) ** 2 + (y - 0.4 * size) ** 2 < (0.17 * size) ** 2, 0.8, 0)
    field += np.where(x + 0.3 * y > 0.9 * size, -0.7, 0)
    tint = np.array([0.9, 1.0, 1.1])
    return np.clip(0.5 + 0.13 * field[..., None] * tint + rng.normal(size=(size, size, 3)) * 0.5 / 255, 0, 1)


def half_and_half(size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Sky on the left, fine texture on the right, and a wall whose edge lies exactly on a patch's border."""
    rng = np.random.default_rng(seed)
    out = gradient(size)
    out[:, size // 2 :] = np.clip(0.45 + 0.06 * rng.normal(size=(size, size // 2, 1)), 0, 1)
    out[: size // 2, 3 * PERIOD :] = out[: size // 2, 3 * PERIOD :] * 0.7  # the edge: 30 %, on a border
    return out


def with_grid(pixels: np.ndarray, levels: float = 3.0, seed: int = 0) -> np.ndarray:
    """Every patch a little too bright or too dark, by up to `levels` of 255, as the model leaves it in flat regions."""
    rng = np.random.default_rng(seed)
    height, width, _ = pixels.shape
    offsets = rng.uniform(-levels, levels, (height // PERIOD, width // PERIOD, 1)) / 255
    return pixels + np.kron(offsets, np.ones((PERIOD, PERIOD, 1)))


def seam_energy(pixels: np.ndarray, period: int = PERIOD) -> tuple[float, float]:
    """Mean squared second difference, in levels, across the seams' two pixels, and everywhere else; both directions."""
    on, off = [], []
    for picture in (pixels, pixels.swapaxes(0, 1)):
        second = np.diff(picture * 255, n=2, axis=1)  # centred on columns 1 .. W-2
        column = np.arange(1, picture.shape[1] - 1)
        at = (column % period == 0) | (column % period == period - 1)
        on.append(np.mean(second[:, at] ** 2))
        off.append(np.mean(second[:, ~at] ** 2))
    return float(np.mean(on)), float(np.mean(off))


def steps(pixels: np.ndarray, columns: slice | None = None, period: int = PERIOD) -> float:
    """What the eye sees of a grid: the mean difference, in levels, between the flat insides of neighbouring patches
    next to their border, less the slope there: 4 pixels on each side, the mean of 16 along it."""
    found = []
    for picture in (pixels[:, columns] if columns else pixels,):
        width = picture.shape[1]
        for border in range(period, width - 8, period):
            left, right = picture[:, border - 6 : border - 2] * 255, picture[:, border + 2 : border + 6] * 255
            inner = np.diff(left, axis=1).mean(1) * 4 + np.diff(right, axis=1).mean(1) * 4
            jump = right.mean(1) - left.mean(1) - inner
            blocks = jump[: len(jump) // 16 * 16].reshape(-1, 16, 3).mean(1)
            found.append(np.abs(blocks).mean())
    return float(np.mean(found))
