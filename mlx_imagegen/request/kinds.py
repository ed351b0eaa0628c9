"""What is known of a parameter, and the kinds of values that parameters take.

Light to import. Must not know: which parameters there are (parameters.py), argparse.
"""

import numbers
from dataclasses import dataclass
from typing import Any

LARGEST_NUMBER = 2**64  # more digits help nobody, and fill a message


@dataclass(frozen=True, eq=False)
class Kind:
    """What values a parameter takes. Without types, the code that reads the value checks it."""

    description: str = ""  # what an error message asks for
    types: tuple[type, ...] = ()
    arrays: bool = False  # NumPy arrays, too

    def accepts(self, value: object) -> bool:
        if isinstance(value, bool):
            return bool in self.types or not self.types
        if self.types and isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            return False
        return not self.types or isinstance(value, self.types) or (self.arrays and hasattr(value, "__array__"))


TEXT = Kind("text", (str,))
WHOLE_NUMBER = Kind("a whole number", (int,))
NUMBER = Kind("a number", (numbers.Real,))
SWITCH = Kind("true or false", (bool,))
CHOICE = Kind("true or false", (bool,))  # or None: it is decided by the library
NUMBERS = Kind("a list", (list, tuple), arrays=True)
ONE_OR_TWO_NUMBERS = Kind()
BOXES = Kind("a list of boxes, each [x1, x2, y1, y2] between 0 and 1", (list, tuple, dict))
LORAS = Kind("a list of files, or of [file, scale]", (list, tuple))
SEEDS = Kind()
SHAPE = Kind()
RADIUS = Kind()
NUMBER_OR_TEXT = Kind()
CORNERS = Kind("four whole numbers x1,y1,x2,y2", (str, list, tuple))
EXPANSION = Kind("pixels by side, such as left=256,top=128", (str, dict))
PLACE = Kind("x,y in pixels, or words such as center or top-left", (str, list, tuple))
SWITCH_OR_TEXT = Kind("true, or a name", (bool, str))
PICTURE = Kind()
PICTURES = Kind()
ARRAY = Kind()
ARRAYS = Kind("a list", (list, tuple), arrays=True)
CONTROLS = Kind()
IMAGE_PROMPTS = Kind()
OF_THE_PICTURE = ("sha256", "edges")  # what a record's entry of the last two says of the picture itself
CALLBACK = Kind()


@dataclass(frozen=True)
class Parameter:
    kind: Kind
    help: str  # names of parameters in backticks
    group: str = ""  # of the command line's help
    metavar: str | None = None
    default: Any = None
    default_text: str = ""  # what None stands for
    limits: tuple[float, float] | None = None  # where they are the same for all models
    recorded: bool = True  # a picture's record holds it
    hashed: bool = False  # the record holds a fingerprint in its place
    portable: bool = False  # means the same to every model
    replaces: tuple[str, ...] = ()  # fields of a record that it contradicts
    aliases: tuple[str, ...] = ()  # what other programs call it
    name: str = ""  # the field's
    scope: str = ""  # "call", "picture" or "load"

    @property
    def flag(self) -> str | None:
        return None if self.kind is CALLBACK else "--" + self.name.replace("_", "-")

    @property
    def record_key(self) -> str:
        return f"{self.name}_sha256" if self.hashed else self.name
