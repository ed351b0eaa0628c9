"""The small world the demo models learn: scenes, their captions and their pictures.

In: a numpy generator. Out: frozen `Scene`s, captions in English or Chinese, and antialiased pictures as uint8 arrays.
It knows nothing of models. A scene is what the caption says; the picture adds a jitter of place and size, so that one
caption has many right pictures and a seed makes a difference. What a caption leaves open is "" in its scene;
`open_captions.py` writes and fills such scenes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PIXELS = 128
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (222, 38, 38),
    "orange": (246, 134, 24),
    "yellow": (246, 212, 36),
    "green": (42, 164, 72),
    "blue": (40, 84, 222),
    "purple": (138, 56, 184),
}
BACKGROUNDS = {"white": (250, 250, 248), "gray": (150, 154, 158), "pink": (250, 204, 216), "black": (22, 22, 28)}
SIZES = {"small": 14.0, "large": 24.0}
PLACES = {"center": (64, 64), "left": (32, 64), "right": (96, 64), "top": (64, 32), "bottom": (64, 96)}
# Centres of the first and the second object.
RELATIONS = {
    "left of": ((33, 64), (95, 64)),
    "right of": ((95, 64), (33, 64)),
    "above": ((64, 33), (64, 95)),
    "below": ((64, 95), (64, 33)),
}
# Radius in units of the size, so that the four shapes look equally large.
RADIUS = {"circle": 1.0, "square": 0.9, "triangle": 1.2, "star": 1.24}
HELD_OUT_SHARE = 16
JITTER = 4.0
OPEN_JITTER = 14.0  # of one thing whose place is open: near the middle
TWIN_JITTER = 1.5  # of two things of one colour, which must not touch

PLACE_WORDS = {
    "center": ("in the center", "in the middle"),
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
CHINESE = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形",
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "white": "白色", "gray": "灰色", "pink": "粉色", "black": "黑色", "small": "小的", "large": "大的",
    "center": "中间", "left": "左侧", "right": "右侧", "top": "上方", "bottom": "下方",
    "left of": "的左边", "right of": "的右边", "above": "的上面", "below": "的下面",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object: a coloured shape of a size; size and colour may be open."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One object with a place, or two with a relation (of the first to the second), on a background.

    Place, relation and background may be open.
    """

    things: tuple[Thing, ...]
    where: str
    background: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this scene: settled by its caption alone."""
        return zlib.crc32(caption(self).encode()) % HELD_OUT_SHARE == 0


def caption(scene: Scene, language: str = "en") -> str:
    """The plain caption of a scene."""
    return _chinese(scene) if language == "zh" else _english(scene, PLACE_WORDS, RELATION_WORDS, 0)


def varied_caption(scene: Scene, rng: np.random.Generator, language: str = "en") -> str:
    """A caption in other words; now and then it leaves out a size or a white background."""
    if language == "zh":
        return _chinese(scene)
    text = _english(scene, PLACE_WORDS, RELATION_WORDS, int(rng.integers(2)))
    if scene.background == "white" and rng.random() < 0.1:
        text = text.removesuffix(" on a white background")
    if rng.random() < 0.05:
        text = text.replace("small ", "").replace("large ", "")
    return text


def _english(scene: Scene, places: dict, relations: dict, choice: int) -> str:
    names = [named(thing) for thing in scene.things]
    if len(names) == 1:
        words = places.get(scene.where, ("",))
        body = f"{names[0]} {words[choice % len(words)]}".rstrip()
    elif scene.where:
        words = relations[scene.where]
        body = f"{names[0]} {words[choice % len(words)]} {names[1]}"
    elif scene.things[0] == scene.things[1]:
        body = f"two {names[0].partition(' ')[2]}s"
    else:
        body = f"{names[0]} and {names[1]}"
    return f"{body} on a {scene.background} background" if scene.background else body


def named(thing: Thing) -> str:
    """The thing in words, with its article."""
    words = [word for word in (thing.size, thing.colour, thing.shape) if word]
    return " ".join([_article(words[0]), *words])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _chinese(scene: Scene) -> str:
    names = ["一个" + named_in_chinese(thing) for thing in scene.things]
    ground = CHINESE[scene.background] + "背景上，" if scene.background else ""
    if len(names) == 1:
        return f"{ground}{names[0]}在{CHINESE[scene.where]}" if scene.where else ground + names[0]
    if scene.where:
        return f"{ground}{names[0]}在{names[1]}{CHINESE[scene.where]}"
    if scene.things[0] == scene.things[1]:
        return f"{ground}两个{named_in_chinese(scene.things[0])}"
    return f"{ground}{names[0]}和{names[1]}"


def named_in_chinese(thing: Thing) -> str:
    return "".join(CHINESE[word] for word in (thing.size, thing.colour, thing.shape) if word)


def sample(rng: np.random.Generator, count: int, held_out: bool, singles: float = 0.2) -> list[Scene]:
    """Draw scenes of one side of the split; the two objects of a scene differ in colour."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = _one(rng, rng.random() < singles)
        if scene.held_out == held_out:
            scenes.append(scene)
    return scenes


def _one(rng: np.random.Generator, single: bool) -> Scene:
    colours = rng.permutation(len(COLOURS))
    things = tuple(
        Thing(tuple(SIZES)[rng.integers(2)], tuple(COLOURS)[colours[i]], SHAPES[rng.integers(4)])
        for i in range(1 if single else 2)
    )
    where = tuple(PLACES)[rng.integers(5)] if single else tuple(RELATIONS)[rng.integers(4)]
    return Scene(things, where, tuple(BACKGROUNDS)[rng.integers(4)])


def targets(scene: Scene) -> list[int]:
    """The scene as class numbers (see `TARGET_SIZES`), for teaching text encoders; 0 is open or no second object."""
    numbers = [number(BACKGROUNDS, scene.background), number([*PLACES, *RELATIONS], scene.where)]
    for i in range(2):
        thing = scene.things[i] if i < len(scene.things) else Thing("", "", "")
        numbers += [number(SIZES, thing.size), number(COLOURS, thing.colour), number(SHAPES, thing.shape)]
    return numbers


def number(names: Iterable[str], name: str) -> int:
    return 1 + tuple(names).index(name) if name else 0


TARGET_SIZES = tuple(1 + len(names) for names in (BACKGROUNDS, [*PLACES, *RELATIONS], *(SIZES, COLOURS, SHAPES) * 2))


def draw(scenes: Sequence[Scene], rng: np.random.Generator, outlined: bool = False) -> np.ndarray:
    """Pictures of the scenes, uint8 [B, PIXELS, PIXELS, 3]; `outlined` leaves the inside of a shape empty."""
    pictures = np.empty((len(scenes), PIXELS, PIXELS, 3), np.uint8)
    for i, scene in enumerate(scenes):
        canvas = np.empty((PIXELS, PIXELS, 3), np.float32)
        canvas[:] = BACKGROUNDS[scene.background]
        centres = RELATIONS[scene.where] if len(scene.things) == 2 else (PLACES[scene.where or "center"],)
        jitter = _jitter(scene)
        for thing, centre in zip(scene.things, centres, strict=True):
            place = np.asarray(centre, np.float32) + rng.uniform(-jitter, jitter, 2)
            radius = SIZES[thing.size] * RADIUS[thing.shape] * rng.uniform(0.95, 1.05)
            _paint(canvas, thing, place, float(radius), outlined)
        pictures[i] = np.rint(canvas)
    return pictures


def _jitter(scene: Scene) -> float:
    if not scene.where:
        return OPEN_JITTER
    return TWIN_JITTER if len({thing.colour for thing in scene.things}) < len(scene.things) else JITTER


def _paint(canvas: np.ndarray, thing: Thing, centre: np.ndarray, radius: float, outlined: bool) -> None:
    x0, y0 = np.maximum(np.floor(centre - radius - 2), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(centre + radius + 3), PIXELS).astype(int)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    distance = signed_distance(thing.shape, x + 0.5 - centre[0], y + 0.5 - centre[1], radius)
    cover = np.clip(0.5 - distance, 0, 1)
    if outlined:
        cover -= np.clip(0.5 - (distance + 4.0), 0, 1)
    window = canvas[y0:y1, x0:x1]
    window += cover[..., None] * (np.asarray(COLOURS[thing.colour], np.float32) - window)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to the outline of a shape around the origin, negative inside; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - radius
    if shape == "triangle":
        y = y - 0.22 * radius  # the centre of a triangle's box is above its centroid
        return np.maximum(y - radius / 2, 0.8660254 * abs(x) - 0.5 * y - radius / 2)
    # A star is one edge, folded into each of ten sectors of 36 degrees; angles count from its upper point.
    sector = np.pi / 5
    angle = abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    length = np.hypot(x, y)
    inner = 0.46 * radius
    edge = np.array([inner * np.cos(sector) - radius, inner * np.sin(sector)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (length * np.cos(angle) - radius) * normal[0] + length * np.sin(angle) * normal[1]
