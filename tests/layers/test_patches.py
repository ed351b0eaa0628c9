"""Pictures as tokens: the order in which diffusers and HiDream-O1's own code lay out a token's values."""

import mlx.core as mx

from mlx_imagegen.layers.patches import patchified, unpatchified


def test_patches_are_ordered_channel_row_column() -> None:
    picture = mx.arange(3 * 4 * 6).reshape(1, 3, 4, 6)
    patches = patchified(picture, 2)
    assert patches.shape == (1, 6, 12)
    assert patches[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33, 50, 51, 56, 57]
    assert (unpatchified(patches, (2, 3), 2) == picture).all()


def test_channels_can_be_the_innermost() -> None:
    """Z-Image's order: (row, column, channel)."""
    picture = mx.arange(3 * 4 * 6).reshape(1, 3, 4, 6)
    patches = patchified(picture, 2, channels_last=True)
    assert patches[0, 1].tolist() == [2, 26, 50, 3, 27, 51, 8, 32, 56, 9, 33, 57]
    assert (unpatchified(patches, (2, 3), 2, channels_last=True) == picture).all()
