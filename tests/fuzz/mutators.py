"""Damages files, each in ways that its format has: structure first, bytes second.

In: a file's bytes and a `random.Random`. Out: other bytes. Must not know: who reads them.
"""

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ODD_NUMBERS = (
    0, 1, -1, 2, 3, 7, 64, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**9, 10**30, 0.0, -0.5, 0.1,
    1e-300, 1e300, 10**400, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "a", "ü", "字", "\0", "\x1b[31m\x1b]0;x\x07", "a\nb", "\u2028", "\ud800", "../x", "/etc/passwd",
    "~nobody/x", "x" * 300, "y" * 100_000, "(a+)+$", "(.*.*.*)*x", "[", "%s{0}", "true", "false", "null",
    "bfloat16", "F32",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["a"], [0] * 100, list(range(70)),
    *ODD_NUMBERS, *ODD_TEXTS,
)  # fmt: skip
DEEP = 40_000


def mutate_bytes(data: bytes, dice: Random) -> bytes:
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(out) + 1)
        step = dice.randrange(7)
        if step == 0 and out:
            out[at % len(out)] ^= 1 << dice.randrange(8)
        elif step == 1:
            del out[at:]
        elif step == 2:
            del out[at : at + dice.randrange(1, 64)]
        elif step == 3:
            out[at:at] = dice.randbytes(dice.randrange(1, 64))
        elif step == 4:
            out[at : at + 8] = struct.pack("<Q", abs(int(dice.choice(ODD_NUMBERS[:17]))) % 2**64)
        elif step == 5:
            stop = at + dice.randrange(1, 256)
            out[at:at] = out[at:stop]
        else:
            out[at : at + dice.randrange(1, 512)] = b"\0" * dice.randrange(1, 512)
    return bytes(out)


def mutate_json(data: bytes, dice: Random) -> bytes:
    if dice.random() < 0.15:
        return mutate_text(data, dice)
    value = json.loads(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        value = _changed(value, dice)
    return dumped(value, dice)


def mutate_text(data: bytes, dice: Random) -> bytes:
    """What only a text can have: deep nesting, a key twice, other encodings, no end."""
    step = dice.randrange(8)
    if step == 0:
        return b"[" * DEEP
    if step == 1:
        return b'{"a":' * DEEP + b"1" + b"}" * DEEP
    if step == 2:
        return data.replace(b",", b", " + _first_pair(data) + b",", 1)
    if step == 3:
        return data.decode("utf-8", "replace").encode("utf-16")
    if step == 4:
        return b"\xef\xbb\xbf" + data
    if step == 5:
        return data.replace(b":", b": " + b"9" * 5000 + b" ,", 1)
    if step == 6:
        return b""
    return mutate_bytes(data, dice)


def mutate_safetensors(data: bytes, dice: Random) -> bytes:
    if dice.random() < 0.25:
        return mutate_bytes(data, dice)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    if dice.random() < 0.3:
        body = mutate_bytes(body, dice)
    header = _other_entry(header, dice) if dice.random() < 0.5 else mutate_json(header, dice)
    count = len(header) if dice.random() < 0.9 else abs(int(dice.choice(ODD_NUMBERS[:17]))) % 2**64
    return struct.pack("<Q", count) + header + body


def mutate_toml(data: bytes, dice: Random) -> bytes:
    """Lines are changed, for there is no writer."""
    lines = data.decode().splitlines()
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(lines)) if lines else 0
        key = lines[at].partition("=")[0] if lines and "=" in lines[at] else "x"
        step = dice.randrange(6)
        if step == 0 and lines:
            del lines[at]
        elif step == 1:
            lines.insert(at, lines[at] if lines else "")
        elif step == 2:
            lines.insert(
                at, dice.choice(("[a.b.c]", "[[x]]", "x = " + "[" * DEEP, ".".join("k" * 3000) + " = 1", "\0"))
            )
        elif step == 3:
            return mutate_bytes(data, dice)
        elif lines:
            lines[at] = f"{key}= {_toml(_odd(dice))}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_lines(data: bytes, dice: Random) -> bytes:
    """JSONL: a line is changed as JSON."""
    lines = data.split(b"\n")
    at = dice.randrange(len(lines))
    if lines[at].startswith(b"{") and dice.random() < 0.8:
        lines[at] = mutate_json(lines[at], dice)
    else:
        lines[at] = mutate_bytes(lines[at], dice)
    return b"\n".join(lines)


def mutate_fields(data: bytes, dice: Random) -> bytes:
    """A protobuf message, as spiece.model is one: a field of the outer or the inner message."""
    if dice.random() < 0.3:
        return mutate_bytes(data, dice)
    fields = list(_fields(data))
    for _ in range(dice.choice((1, 1, 3))):
        if not fields:
            break
        at = dice.randrange(len(fields))
        tag, value = fields[at]
        step = dice.randrange(7)
        if step == 0:
            del fields[at]
        elif step == 1:
            fields.insert(at, fields[at])
        elif step == 2:
            fields[at] = (tag, mutate_bytes(value, dice))
        elif step == 3:
            fields[at] = (dice.randrange(1, 200), value)
        elif step == 4:
            fields[at] = (tag, value * dice.choice((2, 100, 50_000)))
        elif step == 5:
            dice.shuffle(fields)
        else:
            text = dice.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")
            fields[at] = (tag, b"\n" + _varint(len(text)) + text + b"\x15" + dice.randbytes(4))
    return b"".join(_varint(tag) + (value if tag & 7 == 0 else _varint(len(value)) + value) for tag, value in fields)


def replace_file(path: Path, dice: Random) -> None:
    """Something else in a file's place."""
    path.unlink()
    step = dice.randrange(6)
    if step == 0:
        os.mkfifo(path)
    elif step == 1:
        path.mkdir()
    elif step == 2:
        path.symlink_to(path.name)
    elif step == 3:
        path.symlink_to("/dev/zero")
    elif step == 4:
        path.symlink_to("absent")


def dumped(value: Any, dice: Random) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    except ValueError:  # an integer of very many digits
        return b'{"a": ' + b"1" * 5000 + b"}"


def _odd(dice: Random) -> Any:
    return copy.deepcopy(dice.choice(ODD_VALUES))  # what is made of it is changed further


def _changed(value: Any, dice: Random) -> Any:
    """One node of a JSON value, anywhere in it."""
    places = list(_places(value, ()))
    place = dice.choice(places)
    if not place:
        return _odd(dice) if dice.random() < 0.05 else _changed_here(value, dice)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    step = dice.randrange(6)
    if step == 0:
        del parent[place[-1]]
    elif step == 1 and isinstance(parent, dict):
        parent[dice.choice(ODD_TEXTS)] = parent.pop(place[-1])
    elif step == 2:
        parent[place[-1]] = _changed_here(parent[place[-1]], dice)
    else:
        parent[place[-1]] = _odd(dice)
    return value


def _changed_here(value: Any, dice: Random) -> Any:
    if isinstance(value, dict):
        return value | {dice.choice(ODD_TEXTS): _odd(dice)}
    if isinstance(value, list):
        return [*value, _odd(dice)] * dice.choice((1, 1, 2, 50))
    if isinstance(value, bool) or value is None:
        return _odd(dice)
    if isinstance(value, int):
        return dice.choice(
            (
                value + 1,
                value - 1,
                value * 2,
                value // 2,
                -value,
                value / 2 if abs(value) < 1e300 else 0.0,
                str(value),
                [value],
            )
        )
    if isinstance(value, float):
        return dice.choice((value * 2, -value, value * 1e30, str(value), round(value) if abs(value) < 1e15 else 0))
    return dice.choice((value + "x", value[:-1], value.upper(), value * 100, [value]))


def _places(value: Any, place: tuple[Any, ...]) -> Any:
    yield place
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*place, key))


def _other_entry(header: bytes, dice: Random) -> bytes:
    """A safetensors header whose entries still are such, with one that says something else."""
    entries = json.loads(header)
    names = [name for name in entries if name != "__metadata__"]
    name = dice.choice(names)
    entry, step = entries[name], dice.randrange(7)
    if step == 0:
        entry["shape"] = dice.choice(
            ([], [0], [1] * 70, [2**40, 2**40], [-1], entry["shape"][::-1], [*entry["shape"], 1])
        )
    elif step == 1:
        entry["dtype"] = dice.choice(("F32", "BF16", "F8_E4M3", "I64", "BOOL", "U32", "F4", 5, None))
    elif step == 2:
        entry["data_offsets"] = [int(dice.choice(ODD_NUMBERS[:17])) for _ in range(dice.choice((1, 2, 2, 2, 3)))]
    elif step == 3:
        other = entries[dice.choice(names)]
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif step == 4:
        entries[dice.choice(ODD_TEXTS)] = entries.pop(name)
    elif step == 5:
        entries["__metadata__"] = dice.choice(({"a": 1}, {"a": "b" * 10_000}, [], "x", {"format": "pt"}))
    else:
        del entries[name]
    return dumped(entries, dice)


def _first_pair(data: bytes) -> bytes:
    return data.strip().lstrip(b"{[").partition(b",")[0].strip()


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int) and abs(value) > 10**300:
        return "9" * 400
    return str(value).lower() if value is not None else '"none"'


def _fields(data: bytes) -> Any:
    place = 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        if tag & 7 == 0:
            start = place
            _, place = _read_varint(data, place)
            yield tag, data[start:place]
        else:
            length, place = (4, place) if tag & 7 == 5 else _read_varint(data, place)
            yield (tag & ~7) | 2, data[place : place + length]
            place += length


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


Mutator = Callable[[bytes, Random], bytes]
