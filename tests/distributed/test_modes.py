"""Which way of sharing a request is drawn in: as asked, by what fits, by what pays; and refusals in one line."""

from typing import Any

import pytest

from mlx_imagegen.distributed import modes
from mlx_imagegen.distributed.modes import AUTO, Mode, choose
from mlx_imagegen.errors import InsufficientMemoryError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.base import Family
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.machine import GB
from mlx_imagegen.pipeline import load
from mlx_imagegen.planning.hosts import BRANCHES, LAYERS, PICTURES
from mlx_imagegen.request.job import Job, usual_job
from tests.draw import drawn_data

Opened = tuple[Family[Any], Job]


def opened(name: str) -> Opened:
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
    return family, usual_job(manifest, family.size_multiple)


@pytest.fixture(scope="module")
def flux() -> Opened:
    return opened("flux-schnell")


@pytest.fixture(scope="module")
def qwen() -> Opened:
    return opened("qwen-image")


def test_what_fits_is_taken_by_the_number_of_pictures(flux: Opened, qwen: Opened) -> None:
    room = [200 * GB, 200 * GB]
    for (family, job), one, several in ((flux, PICTURES, PICTURES), (qwen, BRANCHES, PICTURES)):
        assert choose(AUTO, family, [job], room).name == one
        assert choose(AUTO, family, [job] * 2, room).name == several


def test_layers_are_shared_where_a_rank_cannot_hold_all(flux: Opened, qwen: Opened) -> None:
    for family, job in (flux, qwen):
        alone = max(sum(family.components[name].nbytes for name in names) for names in family.stages.values())
        assert choose(AUTO, family, [job] * 4, [200 * GB, 0.8 * alone]) == Mode(LAYERS, (1, 1))
    with pytest.raises(InsufficientMemoryError, match=r"host 0 gives 1.00 GB, and where layers are shared out its"):
        choose(AUTO, *pair(flux), [GB, GB])


def pair(each: Opened) -> tuple[Family[Any], list[Job]]:
    return each[0], [each[1]]


def test_a_known_chip_decides_by_seconds(flux: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "machine", lambda: {"device": "Apple M1"})
    room = [200 * GB] * 2
    assert choose(AUTO, *pair(flux), room).name == LAYERS
    assert choose(AUTO, flux[0], [flux[1]] * 2, room).name == PICTURES
    assert choose(AUTO, *pair(flux), room, gigabits=0.3).name == PICTURES, "over Wi-Fi"


def test_what_is_asked_for_is_taken(flux: Opened) -> None:
    family, job = flux
    assert choose(PICTURES, family, [job], [GB, GB]) == Mode(PICTURES), "each rank refuses what it cannot hold"
    uneven = choose(LAYERS, family, [job], [60 * GB, 15 * GB])
    assert len(set(uneven.parts)) == 2 and uneven.describe() == "layers, in parts of {} : {}".format(*uneven.parts)


@pytest.mark.parametrize(
    ("model", "ranks", "reason"),
    [
        (
            "flux-schnell",
            25,
            r"FLUX.1 over 25 ranks: 'transformer_blocks.0.attn.to_q' has 24 heads or groups of channels; launch fewer",
        ),
        ("hidream-o1", 9, r"HiDream-O1-Image over 9 ranks: '.*' has 8 heads or groups of channels; launch fewer"),
    ],
)
def test_more_ranks_than_heads_are_one_line(model: str, ranks: int, reason: str) -> None:
    family, job = opened(model)
    with pytest.raises(RequestError, match=f"--parallel layers: {reason}") as caught:
        choose(LAYERS, family, [job], [200 * GB] * ranks)
    assert "\n" not in str(caught.value)
    assert choose(AUTO, family, [job] * ranks, [200 * GB] * ranks).name == PICTURES


@pytest.mark.parametrize(
    ("mode", "asked", "reason"),
    [
        (BRANCHES, {}, "without guidance between two branches there is one alone"),
        (BRANCHES, {"true_cfg": 3.0, "cache": 0.1}, "leave --cache out"),
        (LAYERS, {"cache": 0.1}, "leave --cache out"),
    ],
)
def test_what_cannot_be_shared_is_refused(mode: str, asked: dict[str, Any], reason: str) -> None:
    opened = load(drawn_data() / "flux/dev")
    jobs = opened.jobs("an owl", seed=1, **asked)
    with pytest.raises(RequestError, match=f"--parallel {mode}: .*{reason}"):
        choose(mode, opened.family, jobs, [200 * GB] * 2)
    assert choose(AUTO, opened.family, jobs, [200 * GB] * 2) == Mode(PICTURES)
