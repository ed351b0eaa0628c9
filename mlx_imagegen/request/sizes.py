"""How wide and high a picture becomes.

In: what was asked for (two sides, a shape, pictures that give one) and the manifest's [sizes]. Out: width and height
that the model can make, and a word where they are not as asked or not what it was made for.
Must not know: what a picture shows, how it is made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import RequestError
from ..escaping import quoted
from ..hub.manifest import Manifest
from ..image import canvas, cut_size, fitted, nearest_shape, proportioned, within_area

# Pixels. Beyond the first attention's arrays pass MLX's 2^31 elements, beyond the second those of a block's MLP: 5980²
# in FLUX.1, 4730² in Qwen-Image with both branches in one batch.
SIDE_LIMIT, AREA_LIMIT = 8192, 4096**2
Box = tuple[int, int, int, int]
USUAL_MULTIPLE = 16  # pixels; of picture sizes, where a manifest says nothing else


@dataclass(frozen=True)
class Asked:
    width: int | None = None
    height: int | None = None
    aspect: str | None = None
    keep_original_aspect: bool = False
    image: Image.Image | None = None  # to start from
    masked: bool = False  # a part of the image is kept
    own_size: bool = False  # the image is not brought down to the model's usual number of pixels
    references: Sequence[Image.Image] = ()


def size_of(manifest: Manifest, multiple: int, asked: Asked, notes: list[str]) -> tuple[int, int]:
    """Width and height: as asked in one of the ways, else the input picture's, else the manifest's."""
    width, height = _asked(manifest, multiple, asked)
    usual = manifest.defaults.width, manifest.defaults.height
    if asked.image is not None and width is None and height is None:
        across, down = asked.image.size
        # A photo of more pixels than the model's usual picture is brought down to as many: at a camera's 12 million a
        # step takes 30 times as long, and no model was made for that.
        if across * down > math.prod(usual) and not asked.own_size:
            width, height = proportioned((across, down), math.prod(usual), multiple)
        else:
            width, height = max(across - across % multiple, multiple), max(down - down % multiple, multiple)
    width, height = usual[0] if width is None else width, usual[1] if height is None else height
    if asked.image is not None and (width, height) != asked.image.size:
        across, down = asked.image.size
        kept = ", what is kept of it as well; give padding to keep its own pixels and size" if asked.masked else ""
        notes.append(f"the input picture is {across}x{down}; it is resized to {width}x{height}{kept}")
    check_multiple(manifest, multiple, width, height)
    if width * height > AREA_LIMIT:
        raise RequestError(f"{width}x{height}: pictures may have up to {AREA_LIMIT / 1e6:.1f} million pixels.")
    notes += size_notes(manifest, width, height)
    return width, height


def _asked(manifest: Manifest, multiple: int, asked: Asked) -> tuple[int | None, int | None]:
    """The sides that are given, in whatever way; two ways that disagree are refused."""
    sides, given = (asked.width, asked.height), [picture.size for picture in asked.references]
    ways = {
        "keep_original_aspect": kept_aspect(manifest, multiple, given) if asked.keep_original_aspect else None,
        "aspect": shape(manifest, multiple, asked.aspect) if asked.aspect is not None else None,
        "width and height": sides if None not in sides else None,
    }
    sizes = {way: size for way, size in ways.items() if size is not None}
    if len(set(sizes.values())) > 1 or (sizes and None in sides and sides != (None, None)):
        raise RequestError(
            f"the picture's shape is given more than once ({', '.join(sizes)}, and a side); leave one of them out."
        )
    trained = manifest.extras.get("references", {}).get("sizes")
    if trained and given and not sizes and sides == (None, None):
        return nearest_shape(given[0], trained, multiple)  # the first picture is what is changed
    area = manifest.extras.get("references_area")
    if not sizes and given and area:  # a side that is not given follows from the first or last picture
        near = _near(manifest, given, area, multiple)
        return near[0] if asked.width is None else asked.width, near[1] if asked.height is None else asked.height
    return next(iter(sizes.values()), sides)


def kept_box(manifest: Manifest, multiple: int, asked: Asked) -> Box | None:
    """What is kept of a picture made from one reference with mirrored edges; None: all. (left, top, right, bottom)"""
    given = asked.width or asked.height or asked.aspect
    if manifest.extras.get("references_size") != "canvas" or len(asked.references) != 1 or given:
        return None
    area = manifest.extras["references"]["canvas_area"]
    inner, outer = canvas(asked.references[0].size, area, multiple)
    left, top = ((whole - part) // 2 for whole, part in zip(outer, inner, strict=True))
    return None if inner == outer else (left, top, left + inner[0], top + inner[1])


def _near(manifest: Manifest, sizes: Sequence[tuple[int, int]], area: int, multiple: int) -> tuple[int, int]:
    """The size that follows from reference pictures': `last`, in the last one's proportions; `first` or `last cut`,
    that one's own, cut; `canvas`, that of a single one with its edges mirrored, else as `first`."""
    rule = manifest.extras.get("references_size", "last")
    if rule == "last":
        return proportioned(sizes[-1], area, manifest.extras["references"]["multiple"])
    if rule == "canvas" and len(sizes) == 1:
        return canvas(sizes[0], manifest.extras["references"]["canvas_area"], multiple)[1]
    return cut_size(within_area(sizes[-1 if rule == "last cut" else 0], area), multiple)


def multiple_of(manifest: Manifest) -> int:
    """What sizes must be a multiple of, as far as the manifest knows; an open model knows it from its files."""
    return int(manifest.extras.get("sizes", {}).get("multiple", USUAL_MULTIPLE))


def check_multiple(manifest: Manifest, multiple: int, width: int, height: int) -> None:
    least = multiple * manifest.extras.get("sizes", {}).get("least_patches", 1)
    for name, side, usual in (("width", width, manifest.defaults.width), ("height", height, manifest.defaults.height)):
        if side < least or side % multiple:
            near = max(least, round(side / multiple) * multiple) if side > 0 else usual
            upwards = f" from {least} up" if least > multiple else ""
            raise RequestError(
                f"{name} {side}: {manifest.name} needs a multiple of {multiple} pixels{upwards}, for example {near}."
            )
        if side > SIDE_LIMIT:
            raise RequestError(f"{name} {side}: pictures may be up to {SIDE_LIMIT} pixels wide and high.")


def shape(manifest: Manifest, multiple: int, aspect: str) -> tuple[int, int]:
    """Width and height for `16:9`, `1.5` or a preset's name: the preset next to it in the ratio of its sides, or,
    where a model has no presets, as many pixels as its usual picture."""
    presets = {name: tuple(size) for name, size in manifest.extras.get("sizes", {}).get("presets", {}).items()}
    if str(aspect) in presets:
        return presets[str(aspect)]
    ratio = _ratio(aspect, presets)
    if presets:
        return min(presets.values(), key=lambda size: abs(size[0] / size[1] - ratio))
    area = manifest.defaults.width * manifest.defaults.height
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def _ratio(aspect: str, presets: Mapping[str, Any]) -> float:
    try:
        width, _, height = str(aspect).partition(":")
        ratio = float(width) / float(height or 1)
        if not 1 / 16 <= ratio <= 16:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        names = f", or one of {', '.join(presets)}" if presets else ""
        raise RequestError(
            f"aspect {quoted(aspect)}: give width:height, such as 16:9, up to 16:1 or 1:16{names}."
        ) from None
    return ratio


def size_notes(manifest: Manifest, width: int, height: int) -> list[str]:
    """A word about sizes that the model can make, but was not made for."""
    sizes = manifest.extras.get("sizes", {})
    low, high = sizes.get("fitting_pixels", (0, math.inf))
    if low <= width * height <= high:
        return []
    less = "smaller" if width * height < low else "larger"
    return [
        f"{width}x{height} is {less} than what {manifest.name} makes well ({low:,} to {high:,} pixels in all); the "
        "picture may be poor"
    ]


def kept_aspect(manifest: Manifest, multiple: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Width and height in the one reference's shape: as many pixels as the largest square preset."""
    if "keep_original_aspect" not in manifest.extras.get("takes", ()):
        raise RequestError(f"keep_original_aspect: {manifest.name} does not take it; give width and height.")
    if len(sizes) != 1:
        raise RequestError(
            f"keep_original_aspect takes its shape from one reference, {len(sizes)} are given; give width and height."
        )
    return fitted(sizes[0], manifest.extras["sizes"]["reference_side"], multiple)
