"""spiece.model -> pieces, scores and the character map.

In: sentencepiece's model file, a protobuf message. Out: `Spiece`, what the `tokenizers` package needs to build the same
unigram model. We read the few fields ourselves: the sentencepiece package hides the character map, and protobuf would
be a dependency for one file. Must not know: T5, special tokens' roles.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, MissingFileError

# Field numbers in sentencepiece_model.proto.
MODEL_PIECES, MODEL_TRAINER, MODEL_NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE = 1, 2
TRAINER_UNKNOWN_ID = 40
NORMALIZER_CHARACTER_MAP = 2


@dataclass(frozen=True)
class Spiece:
    pieces: list[tuple[str, float]]  # piece and log probability, in the order of their ids
    unknown_id: int
    character_map: bytes  # sentencepiece's compiled normalisation rules; empty means none


def read_spiece(path: Path) -> Spiece:
    try:
        return _model(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is not there; download the tokenizer again.") from error
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise ConfigError(f"{path} is not a complete sentencepiece model ({error}); download it again.") from error


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
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field is a number where text is expected")
    return value
