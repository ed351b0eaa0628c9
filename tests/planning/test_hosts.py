"""Plans for several hosts: what is exchanged and held against a run by ranks, and which way of sharing is chosen."""

from typing import Any

import numpy as np
import pytest

from mlx_imagegen.errors import InsufficientMemoryError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.base import Family
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.sharing import Sharing
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.machine import GB
from mlx_imagegen.pipeline import load
from mlx_imagegen.planning.chips import CHIPS
from mlx_imagegen.planning.hosts import BRANCHES, LAYERS, PICTURES, Exchange, Way, choose_way, layer_parts, ways
from mlx_imagegen.planning.hosts import exchange_of as planned_exchange
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import Job, usual_job
from tests.conftest import DATA, Ran
from tests.shared_out import Ring

STORED = ("flux/dev", "flux2/klein", "flux3/klein", "hidream_o1", "qwen_image/image", "z_image/turbo")
ASKED: dict[str, Any] = {"seed": 1, "width": 128, "height": 128, "steps": 3}
CHIP = CHIPS["m4-max"]


@pytest.mark.parametrize("model", STORED)
def test_what_is_exchanged_is_what_was_planned(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring((1, 1))

    def measured(sharing: Sharing) -> tuple[list[int], Exchange]:
        pipeline = load(DATA / model)
        pipeline.family.share_layers(sharing)
        counts: list[int] = []
        pipeline.generate("a red circle", on_step=lambda _: counts.append(len(ring.sums)), **ASKED)
        lengths = [branch.txt.shape[1] for branch in pipeline._branches.values()]
        monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", sum(lengths) / len(lengths))
        return counts, planned_exchange(pipeline.family, pipeline.jobs("a red circle", **ASKED)[0].settings)

    (counts, planned), _ = ring.run(measured)
    sums = ring.sums[counts[1] : counts[2]]
    assert planned.step_sums == len(sums)
    sizes = sum(4 * int(np.prod(shape)) for shape in sums)
    assert planned.step_bytes == pytest.approx(sizes, rel=0.02)  # HiDream-O1 has a token more, the timestep's


def opened(name: str, **asked: Any) -> tuple[Family[Any], Job]:
    manifest = manifests()[name]
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, WeightTransforms())
    return family, usual_job(manifest, family.size_multiple, **asked)


@pytest.fixture(scope="module")
def flux() -> tuple[Family[Any], Job]:
    return opened("flux-dev")


def found(flux: tuple[Family[Any], Job], parts: tuple[int, ...] = (1, 1)) -> dict[str, Way]:
    family, job = flux
    return {way.name: way for way in ways(family, job.settings, parts, gpu=True)}


def test_flux_s_layers_on_two_hosts(flux: tuple[Family[Any], Job]) -> None:
    """19 blocks with two sums of all 4608 tokens, 38 with one, in 16 bits."""
    layers = found(flux)[LAYERS]
    assert layers.exchange.step_bytes == (2 * 19 + 38) * 4608 * 3072 * 2 and layers.exchange.step_sums == 4 * 19 + 38
    assert layers.exchange.sent_bytes(2) == layers.exchange.step_bytes
    assert layers.exchange.sent_bytes(4) == 1.5 * layers.exchange.step_bytes
    assert layers.exchange.seconds(2, 8.0) == pytest.approx(layers.exchange.step_bytes / 1e9)


def test_parts_add_up_to_the_model(flux: tuple[Family[Any], Job]) -> None:
    """But for the layers at both ends, which every host has."""
    family, job = flux
    alone = plan(family, job.settings, gpu=True)
    for parts in ((1, 1), (1, 2), (1, 1, 1, 1)):
        layers = found(flux, parts)[LAYERS]
        for made, part in zip(layers.plans, parts, strict=True):
            assert made.step_flops == pytest.approx(alone.step_flops * part / sum(parts), rel=0.01)
            assert made.stages[1].resident_bytes == pytest.approx(
                alone.stages[1].resident_bytes * part / sum(parts), rel=0.02
            )
    assert family.sharing is None and plan(family, job.settings, gpu=True) == alone, "nothing is left shared"


def test_the_way_that_pays(flux: tuple[Family[Any], Job]) -> None:
    every, room = list(found(flux).values()), [64 * GB, 64 * GB]
    assert choose_way(every, room, CHIP, 1.0).name == PICTURES, "one host draws, for the link is slow"
    assert choose_way(every, room, CHIP, 80.0).name == LAYERS
    assert choose_way(every, room, CHIP, 80.0, pictures=2).name == PICTURES
    assert choose_way(every, [64 * GB, 12 * GB], CHIP, 1.0).name == LAYERS, "one alone could not"
    with pytest.raises(
        InsufficientMemoryError, match=r"host 1 gives 4.00 GB, and where layers are shared out its part"
    ):
        choose_way(every, [64 * GB, 4 * GB], CHIP)


def test_two_branches_are_exchanged_once_a_step() -> None:
    family, job = opened("qwen-image")
    every = ways(family, job.settings, (1, 1), gpu=True)
    assert choose_way(every, [64 * GB, 64 * GB], CHIP).name == BRANCHES
    assert [way.name for way in ways(family, job.settings, (1, 1, 1), gpu=True)] == [PICTURES, LAYERS]


def test_parts_by_memory_where_equal_ones_do_not_fit(flux: tuple[Family[Any], Job]) -> None:
    family, job = flux
    assert layer_parts(family, job.settings, [64 * GB, 16 * GB], gpu=True) == (1, 1)
    parts = layer_parts(family, job.settings, [32 * GB, 8 * GB], gpu=True)
    assert parts == (13, 3)
    assert found(flux, parts)[LAYERS].lacking([32 * GB, 8 * GB]) is None


def test_the_command(cli: Any) -> None:
    ran: Ran = cli("plan", "--model", "flux-dev", "--hosts", "2", "--memory", "32", "16", "--chip", "m4")
    lines = ran.out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert "host 1 has only 11.45 GB" in rows[PICTURES] and "2.15 GB in 114 sums" in rows[LAYERS]
    assert lines[-2:] == ["for a picture: layers", "for 2 pictures or more: layers"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--hosts", "1"], "--hosts 1: give 2 or more."),
        (["--hosts", "3", "--memory", "8", "16"], "--memory has 2 numbers for 3 hosts"),
        (["--memory", "8", "16"], "--memory has 2 numbers for one machine; give --hosts 2 too."),
    ],
)
def test_bad_hosts_are_one_line(cli: Any, asked: list[str], line: str) -> None:
    ran: Ran = cli("plan", "--model", "flux-dev", *asked)
    assert ran.code == 2 and line in ran.err and not ran.out


def test_hosts_that_hold_nothing(cli: Any) -> None:
    lines = cli("plan", "--model", "flux-dev", "--hosts", "2", "--memory", "8", "--chip", "m4").out.splitlines()
    assert lines[-1].startswith("nothing fits: host 0 gives 5.7")


def test_more_hosts_than_heads(cli: Any) -> None:
    out = cli("plan", "--model", "flux-dev", "--hosts", "25", "--memory", "32").out
    assert "layers cannot be shared out over 25 hosts, for 'transformer_blocks.0.attn.to_q' has 24 heads" in out
