"""Says in full what a prompt leaves open, for a small model that has learnt full captions only.

A large model makes a choice of its own where a prompt says nothing; one of a few words draws nothing, or two things.
In: a prompt, a seed, a manifest that lists what its captions consist of. Out: the caption that the model is given and a
note of it; or the prompt as it is, where it is full already or says something that no caption says.
Must not know: models, tokenizers.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..documents import read_toml
from ..hub.manifest import Manifest, data_folder


@dataclass(frozen=True)
class Thing:
    """One thing of a picture; "" where a prompt says nothing."""

    shape: str
    size: str = ""
    colour: str = ""

    def __str__(self) -> str:
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Captions:
    """What the captions consist of: words, and the choices for open parts with their shares."""

    sizes: Mapping[str, float]
    colours: Sequence[str]
    shapes: Sequence[str]
    backgrounds: Mapping[str, float]
    skipped: Sequence[str]
    two: str
    same: Mapping[str, str]  # other words for these
    places: Mapping[str, str]
    relations: Mapping[str, Mapping[str, Any]]


@dataclass
class Scene:
    """What a prompt says."""

    things: list[Thing] = field(default_factory=list)
    where: str = ""  # a place of the one thing, or the relation of the first to the second
    background: str = ""
    order: str = ""  # in which it is said: thing, where, background


def completed(manifest: Manifest, prompt: str, seed: int) -> tuple[str, list[str]]:
    if manifest.captions is None:
        return prompt, []
    known = _captions(manifest.captions)
    scene = _read(prompt, known)
    if scene is None:
        return prompt, []
    complete = all((scene.where, scene.background, *(thing.size and thing.colour for thing in scene.things)))
    if complete and scene.order in ("twb", "twtb"):  # a caption's own order
        return prompt, []
    caption = _said(_filled(scene, known, np.random.default_rng(seed)), known)
    return caption, [f'{manifest.name} draws "{caption}": what a prompt leaves open is chosen by the seed']


@functools.cache
def _captions(file: str) -> Captions:
    return Captions(**read_toml(data_folder("weights") / file))


def _read(prompt: str, known: Captions) -> Scene | None:
    """None where some word, or the number of things, is of no caption."""
    scene, size, colour, count = Scene(), "", "", 1
    for word in re.findall(r"\w+", prompt.lower()):
        word = known.same.get(word, word)
        shape = word if word in known.shapes else word.removesuffix("s")
        if shape in known.shapes:
            if count == 1 and shape != word:  # "circles": two are the fewest
                return None
            scene.things += [Thing(shape, size, colour)] * count
            scene.order += "t"
            size, colour, count = "", "", 1
        elif word == known.two:
            count = 2
        elif word in known.sizes and not size:
            size = word
        elif word in known.colours and not colour:
            colour = word
        elif word in known.backgrounds and not scene.background:
            scene.background = word
            scene.order += "b"
        elif word in (*known.places, *known.relations) and not scene.where:
            scene.where = word
            scene.order += "w"
        elif word not in known.skipped:
            return None
    names: Mapping[str, Any] = known.relations if len(scene.things) == 2 else known.places
    fits = len(scene.things) in (1, 2) and scene.where in ("", *names)
    return scene if fits and not (size or colour) else None


def _filled(scene: Scene, known: Captions, random: np.random.Generator) -> Scene:
    taken = {thing.colour for thing in scene.things}
    colours = [str(name) for name in random.permutation(known.colours) if name not in taken]
    size = _drawn(known.sizes, random)
    alike = len(scene.things) == 2 and scene.things[0] == scene.things[1]
    things = [
        replace(thing, size=thing.size or size, colour=thing.colour or colours[0 if alike else index])
        for index, thing in enumerate(scene.things)
    ]
    shares = {name: relation["share"] for name, relation in known.relations.items()}
    where = scene.where or (_drawn(shares, random) if len(things) == 2 else next(iter(known.places)))
    return Scene(things, where, scene.background or _drawn(known.backgrounds, random))


def _drawn(shares: Mapping[str, float], random: np.random.Generator) -> str:
    return str(random.choice(tuple(shares), p=tuple(shares.values())))


def _said(scene: Scene, known: Captions) -> str:
    if len(scene.things) == 1:
        body = f"{scene.things[0]} {known.places[scene.where]}"
    else:
        body = f"{scene.things[0]} {known.relations[scene.where]['words']} {scene.things[1]}"
    return f"{body} on a {scene.background} background"
