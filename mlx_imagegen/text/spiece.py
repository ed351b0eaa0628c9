"""spiece.model -> pieces, scores and the character map.

In: sentencepiece's model file, a protobuf message. Out: `Spiece`, what the `tokenizers` package needs to build the same
unigram model. We read the few fields ourselves: the sentencepiece package hides the character map, and protobuf would
be a dependency for one file. Must not know: T5, special tokens' roles.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..documents import read_file
from ..escaping import quoted, shown

# Field numbers in sentencepiece_model.proto.
MODEL_PIECES, MODEL_TRAINER, MODEL_NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE = 1, 2
TRAINER_UNKNOWN_ID = 40
NORMALIZER_CHARACTER_MAP = 2

LIMIT_BYTES = 20 * 2**20  # T5's has 0.8 MB
PIECE_LENGTH = 1000  # T5's longest has 16 characters


@dataclass(frozen=True)
class Spiece:
    pieces: list[tuple[str, float]]  # piece and log probability, in the order of their ids
    unknown_id: int
    character_map: bytes  # sentencepiece's compiled normalisation rules; empty means none


def read_spiece(path: Path) -> Spiece:
    """Unchecked; ValueError, IndexError, KeyError or struct.error for what is not one, or was cut."""
    return _model(read_file(path, LIMIT_BYTES))


def checked(spiece: Spiece) -> Spiece:
    """Refuses what the `tokenizers` package would end the process for, then or while it reads a text."""
    for piece, score in spiece.pieces:
        if not 1 <= len(piece) <= PIECE_LENGTH or not math.isfinite(score):
            raise ValueError(f"the piece {quoted(piece)} with the score {shown(score)}")
    if not 0 <= spiece.unknown_id < len(spiece.pieces):
        raise ValueError(f"the unknown piece is number {spiece.unknown_id} of {len(spiece.pieces)}")
    if spiece.character_map:
        _check_character_map(spiece.character_map)
    return spiece


def _check_character_map(data: bytes) -> None:
    """A double array of 32-bit units, which lead to one another, and the texts that its values are places in."""
    size = int.from_bytes(data[:4], "little")
    texts = data[4 + size :]
    if len(data) < 8 or not size or size % 4 or 4 + size > len(data) or not texts:
        raise ValueError("the character map is cut")
    texts.decode()
    units = np.frombuffer(data, "<u4", size // 4, 4)
    inner = units < 1 << 31  # the others are values
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    targets = np.arange(len(units), dtype=np.int64) ^ offsets.astype(np.int64)
    if (targets[inner] | 255).max(initial=0) >= len(units):  # a byte of text is added to each
        raise ValueError("the character map leads out of itself")
    places = units[targets[inner & ((units >> 8) & 1 == 1)]] & 0x7FFFFFFF
    if places.max(initial=0) >= len(texts):
        raise ValueError("the character map names a text that it does not have")
    if np.any(np.frombuffer(texts, np.uint8)[places] & 0xC0 == 0x80):
        raise ValueError("the character map names the middle of a character")


def _model(data: bytes) -> Spiece:
    pieces: list[tuple[str, float]] = []
    unknown_id: int | None = None
    character_map: bytes | None = None
    for number, value in _fields(data):
        if number == MODEL_PIECES:
            piece = dict(_fields(_bytes(value)))
            (score,) = struct.unpack("<f", _bytes(piece[PIECE_SCORE]))
            pieces.append((_bytes(piece[PIECE_TEXT]).decode(), score))
        elif number == MODEL_TRAINER:
            unknown_id = int(dict(_fields(_bytes(value))).get(TRAINER_UNKNOWN_ID, 0))
        elif number == MODEL_NORMALIZER:
            character_map = _bytes(dict(_fields(_bytes(value))).get(NORMALIZER_CHARACTER_MAP, b""))
    if unknown_id is None or character_map is None:  # both stand after the pieces
        raise ValueError("its end is missing")
    return Spiece(pieces, unknown_id, character_map)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of one protobuf message: varints as int, everything else as bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown field type {kind} at byte {place}")
        if place + length > len(data):
            raise ValueError(f"it ends {place + length - len(data)} bytes early")
        yield tag >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError(f"a number of more than 64 bits at byte {place}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field is a number where text is expected")
    return value
