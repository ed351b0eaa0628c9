"""Pictures to follow: every way to give them, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.controls import Control, open_controls, parse_control
from mlx_imagegen.request.job import resolve

EDGES = Image.new("RGB", (8, 6), "white")


@pytest.mark.parametrize("given", [EDGES, [EDGES], [(EDGES,)], [{"picture": EDGES}], np.full((6, 8, 3), 255, np.uint8)])
def test_one_picture_may_be_given_alone(given: Any) -> None:
    (control,) = open_controls(given)
    assert (control.picture.size, control.model, control.strength, control.kind) == ((8, 6), None, 1.0, None)
    assert (control.start, control.end) == (0.0, 1.0)


def test_entries_by_place_and_by_name(tmp_path: Path) -> None:
    EDGES.save(tmp_path / "edges.png")
    by_place = open_controls([(tmp_path / "edges.png", "some-net", 0.7, "canny", 0.1, 0.8), (EDGES, "other", None)])
    by_name = open_controls([{"picture": EDGES, "model": "some-net", "strength": 0.7, "kind": "canny", "start": 0.1}])
    expected = Control(by_place[0].picture, "some-net", 0.7, "canny", 0.1, 0.8)
    assert by_place[0] == expected and by_place[1].strength == 1.0
    assert (by_name[0].kind, by_name[0].start, by_name[0].end) == ("canny", 0.1, 1.0)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("edges.png", {"picture": "edges.png"}),
        ("edges.png,net,0.7", {"picture": "edges.png", "model": "net", "strength": "0.7"}),
        (
            "edges.png,owner/net,kind=canny,end=0.8",
            {"picture": "edges.png", "model": "owner/net", "kind": "canny", "end": "0.8"},
        ),
        ("edges.png,,0.5", {"picture": "edges.png", "strength": "0.5"}),
    ],
)
def test_the_command_line_s_form(text: str, entry: dict[str, str]) -> None:
    assert parse_control(text) == entry


def test_a_record_tells_pictures_apart() -> None:
    manifest = manifests()["flux-depth-dev"]
    (job,) = resolve(manifest, 16, "a fox", 1, control=[(EDGES, None, 0.5)])
    (entry,) = job.record("embedded")["control_sha256"]
    assert entry["strength"] == 0.5 and len(entry["sha256"]) == 16 and "kind" not in entry
    (other,) = resolve(manifest, 16, "a fox", 1, control=Image.new("RGB", (8, 6)))
    assert other.record("embedded")["control_sha256"][0]["sha256"] != entry["sha256"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "give pictures, or .picture, model, strength"),
        ([5], "an entry of the kind int is none of these"),
        ([{"model": "net"}], "an entry of the kind dict"),
        ([{"picture": EDGES, "weight": 1}], "an entry of the kind dict"),
        ([(EDGES, "net", 1, "canny", 0, 1, 2)], "7 are given"),
        ([(EDGES, "net", 11)], "strength 11: give a number from 0 to 10"),
        ([(EDGES, "net", "much")], "strength 'much'"),
        ([(EDGES, "net", True)], "strength True"),
        ([(EDGES, 5)], "model 5: give text"),
        ([(EDGES, "net", 1, None, 0.8, 0.2)], "start 0.8 and end 0.2"),
        ([(EDGES, "net", 1, None, -1)], "start -1: give a number from 0 to 1"),
    ],
)
def test_refused_with_a_way_out(given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_controls(given)
