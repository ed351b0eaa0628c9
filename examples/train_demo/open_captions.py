"""Captions as people first type them: no place, size or background, two things without a relation, other orders.

In: a numpy generator. Out: scenes with open parts ("" in `scenes.Scene`), the same scenes filled in for drawing, and
captions in many wordings. It draws no pictures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scenes
from scenes import Scene, Thing

# How often a caption says each part.
SAID_SIZE, SAID_COLOUR, SAID_WHERE, SAID_BACKGROUND = 0.3, 0.92, 0.3, 0.4
SINGLES, TWINS = 0.5, 0.2
OPEN_SHARE = 0.55
# What is drawn where a caption says nothing.
OPEN_BACKGROUND = {"white": 0.55, "gray": 0.15, "pink": 0.15, "black": 0.15}
OPEN_RELATION = {"left of": 0.5, "right of": 0.2, "above": 0.15, "below": 0.15}
OPEN_SIZE = {"small": 0.4, "large": 0.6}


def sample(rng: np.random.Generator, count: int, held_out: bool) -> list[Scene]:
    """Draw scenes with at least one open part, of one side of the split."""
    found: list[Scene] = []
    while len(found) < count:
        scene = _one(rng)
        if is_open(scene) and scene.held_out == held_out:
            found.append(scene)
    return found


def held_out(count: int, seed: int, language: str = "en") -> tuple[list[Scene], list[str]]:
    """Different scenes with open parts that no training sees, and a caption of each."""
    rng = np.random.default_rng(seed)
    found: dict[Scene, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(sample(rng, count, held_out=True)))
    wanted = list(found)[:count]
    return wanted, [worded(scene, rng, language) for scene in wanted]


def is_open(scene: Scene) -> bool:
    return not (scene.where and scene.background and all(t.size and t.colour for t in scene.things))


def is_twins(scene: Scene) -> bool:
    return len(scene.things) == 2 and scene.things[0] == scene.things[1]


def _one(rng: np.random.Generator) -> Scene:
    background = str(rng.choice(tuple(scenes.BACKGROUNDS))) if rng.random() < SAID_BACKGROUND else ""
    kind = rng.random()
    first = _thing(rng)
    if kind < SINGLES:
        return Scene((first,), _where(rng, scenes.PLACES), background)
    if kind < SINGLES + TWINS:
        return Scene((first, first), "", background)
    second = _thing(rng)
    while second.colour == first.colour:
        second = _thing(rng)
    if not (first.colour and second.colour):
        first, second = replace(first, colour=""), replace(second, colour="")
    return Scene((first, second), _where(rng, scenes.RELATIONS), background)


def _thing(rng: np.random.Generator) -> Thing:
    size = str(rng.choice(tuple(scenes.SIZES))) if rng.random() < SAID_SIZE else ""
    colour = str(rng.choice(tuple(scenes.COLOURS))) if rng.random() < SAID_COLOUR else ""
    return Thing(size, colour, str(rng.choice(scenes.SHAPES)))


def _where(rng: np.random.Generator, names: dict) -> str:
    return str(rng.choice(tuple(names))) if rng.random() < SAID_WHERE else ""


def sample_mixed(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes to learn from: a little more than half of them with open parts."""
    some = sample(rng, round(OPEN_SHARE * count), held_out=False)
    mixed = some + scenes.sample(rng, count - len(some), held_out=False)
    return [mixed[i] for i in rng.permutation(count)]


def filled(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a choice for every open part; one thing without a place keeps it open: near the middle."""
    said = {thing.colour for thing in scene.things}
    colours = [str(name) for name in rng.permutation(tuple(scenes.COLOURS)) if name not in said]
    size = _drawn(OPEN_SIZE, rng)
    things = [
        Thing(thing.size or size, thing.colour or colours[i], thing.shape) for i, thing in enumerate(scene.things)
    ]
    if is_twins(scene):
        things[1] = things[0]
    where = scene.where or (_drawn(OPEN_RELATION, rng) if len(things) == 2 else "")
    return Scene(tuple(things), where, scene.background or _drawn(OPEN_BACKGROUND, rng))


def _drawn(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(tuple(shares), p=tuple(shares.values())))


def worded(scene: Scene, rng: np.random.Generator, language: str = "en") -> str:
    """The scene's caption in one of many wordings."""
    if language == "zh":
        return scenes.caption(scene, "zh")
    articles = rng.random() < 0.85
    text = _whole(_body(scene, rng, articles), scene.background, rng, articles)
    if rng.random() < 0.3:
        text = text.replace("large ", "big ")
    if rng.random() < 0.25:
        text = text.replace("gray", "grey")
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text


def _whole(body: str, background: str, rng: np.random.Generator, articles: bool) -> str:
    """Things and their background, one before the other."""
    if not background:
        return body
    article = "a " if articles else ""
    wordings = (f"{body} on a {background} background",) * 3 + (
        f"{body} on {background}",
        f"{body} on {article}{background} background",
        f"{article}{background} background with {body}",
        f"on a {background} background {body}" if articles else f"{background} background, {body}",
    )
    return wordings[rng.integers(len(wordings))]


def _body(scene: Scene, rng: np.random.Generator, articles: bool) -> str:
    names = [scenes.named(thing) for thing in scene.things]
    if not articles:
        names = [name.partition(" ")[2] for name in names]
    if len(names) == 1:
        return _single(names[0], scene.where, rng, articles)
    if scene.where:
        words = scenes.RELATION_WORDS[scene.where]
        return f"{names[0]} {words[rng.integers(len(words))]} {names[1]}"
    if is_twins(scene):
        return f"two {scenes.named(scene.things[0]).partition(' ')[2]}s"
    return f"{names[0]} {('and', 'and', 'and', 'next to', 'with')[rng.integers(5)]} {names[1]}"


def _single(name: str, where: str, rng: np.random.Generator, articles: bool) -> str:
    if articles and rng.random() < 0.1:
        name = "one " + name.partition(" ")[2]
    if not where:
        return name
    words = scenes.PLACE_WORDS[where]
    place = words[rng.integers(len(words))]
    return f"{place} {name}" if rng.random() < 0.15 else f"{name} {place}"
