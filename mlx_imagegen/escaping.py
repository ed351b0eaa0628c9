"""Text from files, as it may stand in a message and on a terminal.

In: any text or value. Out: text of one line, in which nothing steers a terminal, shortened where it is long.
Must not know: which file it is from, who reads it.
"""

import reprlib
from collections.abc import Collection, Sequence

SHOWN_LENGTH = 80  # characters of a value
LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """Escape sequences, marks that turn the direction of writing, and halves of surrogate pairs, spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(text: str, length: int = LONGEST_MESSAGE) -> str:
    """For messages: line breaks become spaces, and the middle of a very long text is left out."""
    return shortened(printable(" ".join(text.split())), length)


def shown(value: object, length: int = SHOWN_LENGTH) -> str:
    """A value out of a file, within a message: text as it is, everything else as Python writes it."""
    if not isinstance(value, str):
        value = _short_repr(value, length)
    return shortened(printable(shortened(value, 2 * length)), length)


def quoted(value: object) -> str:
    """The same, with text in quotes."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)


def listed(items: Sequence[str], most: int = 3, length: int = 220, joint: str = ", ") -> str:
    """The first few that have room in so many characters, one at least, and how many there are more."""
    first: list[str] = []
    for item in items[:most]:
        text = shown(item, length)
        if first and len(joint.join([*first, text])) > length:
            break
        first.append(text)
    more = f" … and {len(items) - len(first)} more" if len(items) > len(first) else ""
    return joint.join(first) + more


def ranged(numbers: Collection[int]) -> str:
    """0-18 for what follows one another, and 0,2,5 for what does not."""
    low, high = min(numbers), max(numbers)
    known = sorted(set(numbers))
    return f"{low}-{high}" if len(known) > 1 and known == [*range(low, high + 1)] else ",".join(map(str, known))


def shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 3]} … {text[len(text) - tail :]}"


def _short_repr(value: object, length: int) -> str:
    """A value of any size and depth, without going through all of it."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxlist, brief.maxdict, brief.maxtuple = 3, 6, 4, 6
    brief.maxstring = brief.maxlong = brief.maxother = length
    try:
        return brief.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a {type(value).__name__} of very many digits"


def article(noun: str) -> str:
    """a or an."""
    return "an" if noun[0] in "aeiou" else "a"
