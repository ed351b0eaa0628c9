"""config.json -> dataclass: fields keep their names, nothing is guessed, nothing is passed over."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from mlx_imagegen.errors import ConfigError, MissingFileError
from mlx_imagegen.loading.config import Config, Range, read_json, read_table
from mlx_imagegen.vision.patches import PatchConfig
from mlx_imagegen.vision.qwen2_5 import VisionConfig


@dataclass(frozen=True)
class Sample(Config):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})

    width: int
    scale: float
    names: tuple[str, ...]
    gate: bool = False
    depth: int | None = None


GOOD: dict[str, Any] = {"width": 3, "scale": 2, "names": ["a", "b"]}


def test_fields_defaults_and_conversions() -> None:
    read = Sample.read(GOOD | {"depth": None, "dropout": 0.1, "_class_name": "Sample"}, "config.json")
    assert read == Sample(3, 2.0, ("a", "b"))
    assert type(read.scale) is float
    assert Sample.read(GOOD | {"depth": 4, "gate": True}, "x").depth == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "3"}, "field 'width' is '3', where a int is needed"),
        ({"width": True}, "field 'width' is True"),
        ({"width": 3.0}, "field 'width' is 3.0"),
        ({"scale": True}, "field 'scale' is True"),
        ({"names": "ab"}, "field 'names' is 'ab'"),
        ({"names": ["a", 1]}, "field 'names' is 1"),
        ({"gate": 1}, "field 'gate' is 1"),
        ({"depth": "4"}, "field 'depth' is '4'"),
        ({"heads": 8}, "field 'heads' is not known to this port"),
        ({"heads": 8, "eps": 1}, "fields 'eps', 'heads' are not known"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Sample.read(GOOD | change, "some/config.json")
    assert "some/config.json" in str(caught.value)


@dataclass(frozen=True)
class Particular(Sample):
    ONLY: ClassVar[Mapping[str, object]] = {"gate": False}
    REMEDY: ClassVar[str] = "take it from Sample's repository"

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.width % len(self.names):
            yield "width", f"a multiple of the names ({len(self.names)})"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": True}, "field 'gate' is True, where False is needed; take it from Sample's repository."),
        ({}, r"field 'width' is 3, where a multiple of the names \(2\) is needed; take it from Sample's repository."),
        ({"gate": True, "width": 4}, "field 'gate' is True"),
    ],
)
def test_what_a_port_does_not_know_is_refused_with_what_it_needs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^some/config.json: {message}"):
        Particular.read(GOOD | change, "some/config.json")
    assert Particular.read(GOOD | {"width": 4}, "x").width == 4


def test_missing_fields_are_gathered() -> None:
    with pytest.raises(ConfigError, match="fields 'width', 'scale', 'names' are missing.*not a Sample config"):
        Sample.read({}, "config.json")


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(MissingFileError, match="config.json is not there"):
        read_json(path)
    for text, message in (("{", "not valid JSON"), ("[]", "is a list"), ("", "not valid JSON")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_json(path)
    path.write_bytes(b'\xff{"a": 1}')
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_json(path)
    path.write_text(json.dumps({"ä": 1}, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == {"ä": 1}


@dataclass(frozen=True)
class Numbers(Config):
    CLASSES: ClassVar[frozenset[str]] = frozenset({"Numbers"})

    hidden_size: int = 8
    num_layers: int = 2
    num_single_layers: int = 2
    num_attention_heads: int = 2
    norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    shift_factor: float = 0.0
    axes: tuple[int, ...] = (2,)
    tokens: dict[str, int] | None = None
    steps: Annotated[int, Range(1, 10)] = 1


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0}, {"hidden_size": -1}, {"hidden_size": 10**400}, {"num_layers": 10**9},
        {"num_single_layers": 1001}, {"num_attention_heads": 0}, {"norm_eps": 0.0}, {"norm_eps": float("nan")},
        {"mlp_ratio": -2.0},
        {"norm_eps": 10**400}, {"shift_factor": float("inf")}, {"axes": [2, 0]}, {"axes": [[2]]},
        {"axes": list(range(1, 20_000))}, {"tokens": {"a": "1"}}, {"tokens": {"a": {"b": 1}}}, {"steps": 11},
        {"_class_name": "Letters"}, {"_class_name": ["Numbers"]},
    ],
)  # fmt: skip
def test_every_number_has_a_range_without_asking_for_it(change: dict[str, Any]) -> None:
    """New families get the ranges of their fields' names, and those of their kinds otherwise."""
    with pytest.raises(ConfigError) as caught:
        Numbers.read(change, "config.json")
    assert len(str(caught.value)) < 400
    assert Numbers.read({"num_layers": 0, "shift_factor": -1.5}, "x").num_layers == 0


@pytest.mark.parametrize("value", [5, "text", [1], True, 0.5])
def test_a_table_within_a_table_must_be_one(value: Any) -> None:
    """Whatever stands where a table belongs is refused by name, also where a vision tower's config is read."""
    assert read_table({"a": {"b": 1}}, "a", "x.json") == {"b": 1}
    assert read_table({"a": None}, "a", "x.json") == read_table({}, "a", "x.json") == {}
    readers = (
        lambda: read_table({"size": value}, "size", "x.json"),
        lambda: PatchConfig.read_part({"size": value}, Path("x.json")),
        lambda: VisionConfig.read_part({"vision_config": value}, Path("x.json")),
        lambda: VisionConfig.read_part({"vision_config": {"rope_parameters": value}}, Path("x.json")),
    )
    for read in readers:
        with pytest.raises(ConfigError, match="x.json.* is .* where a table of fields is needed"):
            read()


@dataclass(frozen=True)
class Pair(Config):
    ends: tuple[int, int]
    named: dict[str, tuple[int, int]]
    many: tuple[int, ...] = ()


@pytest.mark.parametrize(
    "change", [{"ends": [1]}, {"ends": [1, 2, 3]}, {"ends": []}, {"named": {"a": [1]}}, {"named": {"a": [1, 2, 3]}}]
)
def test_a_pair_has_two(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"ends": [1, 2], "named": {"a": [3, 4]}, "many": [1, 2, 3]}
    assert Pair.read(given, "x.json") == Pair((1, 2), {"a": (3, 4)}, (1, 2, 3))
    with pytest.raises(ConfigError, match=f"field '{next(iter(change))}'"):
        Pair.read(given | change, "x.json")
