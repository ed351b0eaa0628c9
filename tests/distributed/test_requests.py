"""A request on its way to another host: what it names by path arrives with its contents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.distributed.requests import packed, unpacked, with_seeds
from mlx_imagegen.errors import MissingFileError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: str(tmp_path / name) for name in ("photo.png", "edges.png", "noise.npy")}
    Image.new("RGB", (8, 8), "teal").save(paths["photo.png"])
    Image.new("RGB", (8, 8), "white").save(paths["edges.png"])
    np.save(paths["noise.npy"], np.arange(4.0))
    return paths


def arrived(request: dict[str, Any], files: dict[str, str], folder: Path) -> dict[str, Any]:
    """On a host that has none of the files."""
    sent = packed(request)
    for path in files.values():
        Path(path).unlink()
    return unpacked(sent, folder)


def test_every_kind_of_file_arrives(files: dict[str, str], tmp_path: Path) -> None:
    photo, edges, noise = files.values()
    request = {
        "prompt": "an owl", "image": photo, "references": [photo, edges], "noise": noise, "step_noise": [noise],
        "control": [[edges, "union", 0.5], {"picture": photo, "kind": "canny"}], "redux": photo,
        "ip_adapter": [{"picture": photo, "scale": 0.7}],
    }  # fmt: skip
    got = arrived(request, files, tmp_path / "there")
    assert got["prompt"] == "an owl" and [entry.get("model") for entry in got["control"]] == ["union", None]
    assert got["control"][1]["kind"] == "canny" and got["ip_adapter"][0]["scale"] == 0.7
    named = [entry["picture"] for name in ("control", "redux", "ip_adapter") for entry in got[name]]
    for path in (got["image"], *got["references"], *named):
        assert Path(path).is_relative_to(tmp_path / "there") and Image.open(path).size == (8, 8)
    assert {Path(path).name for path in named} == {"photo.png", "edges.png"}
    for path in (got["noise"], *got["step_noise"]):
        assert np.load(path).tolist() == [0, 1, 2, 3]


def test_a_file_that_is_not_there_is_named(files: dict[str, str]) -> None:
    with pytest.raises(MissingFileError, match=r"redux: .*nowhere.png is not there"):
        packed({"redux": [{"picture": "nowhere.png"}]})


def test_what_is_no_path_is_left_to_the_checks(files: dict[str, str]) -> None:
    assert packed({"image": 5, "noise": [[1.0]]}) == {"image": 5, "noise": [[1.0]]}
    assert packed({"references": files["photo.png"]})["references"]["file_name"] == "photo.png", (
        "one in place of a list"
    )


def test_seeds_are_written_out() -> None:
    (seed, other) = with_seeds({"prompt": "an owl", "count": 2})["seed"]
    assert seed != other and with_seeds({"seed": 7})["seed"] == [7]
