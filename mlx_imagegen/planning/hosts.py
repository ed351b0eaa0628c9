"""A picture on several hosts: what each holds, what they exchange, and which way of sharing pays.

In: an open family (headers only), a picture's settings, a chip, and what each host's memory gives. Out: a `Way` for
each of pictures, branches and layers, for people and for the choice that a run makes. All hosts count as equally fast.
Must not know: how hosts are connected, how stages run.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InsufficientMemoryError
from ..families import open_family
from ..families.base import Family, Prompt, Settings
from ..hub.manifest import Manifest
from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from ..layers.linear import Linear
from ..layers.sharing import COLUMNS, Sharing
from ..loading.component import Component
from ..loading.weights import WeightTransforms
from ..precision import SOLVER_DTYPE, on_gpu
from ..request.job import usual_job
from .chips import CHIPS, Chip
from .plan import NO_REFERENCES, Plan, count_tokens, gigabytes, held_bytes, number_bytes, plan, tokens_through

PICTURES, BRANCHES, LAYERS = "pictures", "branches", "layers"
PARTS = 16  # into which layers are shared out by memory
ANY_CHIP = "m4"  # where only memory counts
USUAL_LINK = 10.0  # Gb/s, where the link is not known
LINKS = (1.0, 10.0, 80.0)  # Gb/s: plain Ethernet or Wi-Fi, 10-gigabit Ethernet, Thunderbolt 5


@dataclass(frozen=True)
class Exchange:
    """What is summed over the hosts, counted on one of them."""

    step_bytes: int = 0
    step_sums: int = 0
    prompt_bytes: int = 0  # once, before the first step

    def sent_bytes(self, hosts: int) -> float:
        """By each host in a step: in a ring every part but its own goes round twice."""
        return 2 * (hosts - 1) / hosts * self.step_bytes

    def seconds(self, hosts: int, gigabits: float) -> float:
        """Of a step, at best: hosts send and are sent at the same time."""
        return self.sent_bytes(hosts) * 8 / (gigabits * 1e9)

    def describe(self, hosts: int) -> str:
        count = f"{self.step_sums} sum{'s' * (self.step_sums > 1)}"
        return f"{gigabytes(self.sent_bytes(hosts))} in {count}" if self.step_sums else "nothing"


@dataclass(frozen=True)
class Way:
    """One way to share a request out."""

    name: str
    plans: tuple[Plan, ...]  # each host's
    exchange: Exchange
    at_once: int = 1  # pictures
    overlap: float = 1.0  # of a picture's arithmetic as planned, what each host does
    parts: tuple[int, ...] = ()  # of the layers, each host's in relation to the others'

    def seconds(self, chip: Chip, gigabits: float, pictures: int = 1) -> float:
        """The loops of so many pictures, at best."""
        step = self.step_seconds(chip) + self.exchange.seconds(len(self.plans), gigabits)
        return math.ceil(pictures / self.at_once) * self.plans[0].steps * step

    def step_seconds(self, chip: Chip) -> float:
        """The arithmetic of the host that has most, at best."""
        return self.overlap * max(made.seconds(chip) / made.steps for made in self.plans)

    def lacking(self, memories: Sequence[int]) -> int | None:
        """The first host that cannot hold its part."""
        pairs = enumerate(zip(self.plans, memories, strict=True))
        return next((rank for rank, (made, memory) in pairs if made.peak_bytes > memory), None)


def ways(
    family: Family[Any],
    settings: Settings,
    parts: Sequence[int],
    gpu: bool | None = None,
    prompt: Prompt = NO_REFERENCES,
) -> list[Way]:
    """Ways that share this picture out. `parts`: of the layers, by host; nothing is loaded yet."""
    hosts = len(parts)
    alone = (plan(family, settings, gpu, prompt),) * hosts
    found = [Way(PICTURES, alone, Exchange(), hosts)]
    if hosts == alone[0].branches == 2:
        velocity = math.prod(family.shape(settings)) * SOLVER_DTYPE.size
        found.append(Way(BRANCHES, alone, Exchange(2 * velocity, 1), 1, 0.5))
    if family.transformer.cuts and not family.sharing_refusal(Sharing(0, tuple(parts))):
        found.append(_layers_way(family, settings, parts, gpu, prompt))
    return found


def _layers_way(family: Family[Any], settings: Settings, parts: Sequence[int], gpu: bool | None, prompt: Prompt) -> Way:
    former = family.sharing
    plans, exchange = [], Exchange()
    try:
        for rank in range(len(parts)):
            family.share_layers(Sharing(rank, tuple(parts)))
            plans.append(plan(family, settings, gpu, prompt))
            exchange = exchange_of(family, settings, gpu, prompt)
    finally:
        family.share_layers(former)
    return Way(LAYERS, tuple(plans), exchange, parts=tuple(parts))


def layer_parts(
    family: Family[Any],
    settings: Settings,
    memories: Sequence[int],
    gpu: bool | None = None,
    prompt: Prompt = NO_REFERENCES,
) -> tuple[int, ...]:
    """Equal parts of the layers for each host; where one cannot hold its own, parts by the hosts' memories."""
    equal = (1,) * len(memories)
    by_memory = tuple(max(1, round(PARTS * memory / sum(memories))) for memory in memories)
    for parts in (equal, by_memory):
        refused = family.sharing_refusal(Sharing(0, parts))
        if not refused and _layers_way(family, settings, parts, gpu, prompt).lacking(memories) is None:
            return parts
    return equal


def check_hosts_before_download(manifest: Manifest, transforms: WeightTransforms, memories: Sequence[int]) -> None:
    """Raises where one stage's weights are too many for a host at any size, with their layers shared out too."""
    if not has_tensor_shapes(manifest):
        return
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, transforms)
        job = usual_job(manifest, family.size_multiple)
        parts = layer_parts(family, job.settings, memories, prompt=job.prompt)
        alone = all(_holds(family, None, memory) for memory in memories)
        shared = not family.sharing_refusal(Sharing(0, parts)) and all(
            _holds(family, Sharing(rank, parts), memory) for rank, memory in enumerate(memories)
        )
        if not (alone or shared):
            choose_way(ways(family, job.settings, parts, prompt=job.prompt), memories, CHIPS[ANY_CHIP])


def _holds(family: Family[Any], sharing: Sharing | None, memory: int) -> bool:
    """The weights of each stage alone."""
    family.share_layers(sharing)
    stages = [[family.components[name] for name in names] for names in family.stages.values()]
    most = max(sum(held_bytes(component, on_gpu()) for component in components) for components in stages)
    family.share_layers(None)
    return most <= memory


def describe_sharing(
    family: Family[Any], settings: Settings, memories: Sequence[int], chip: Chip, gpu: bool, prompt: Prompt
) -> list[str]:
    """For people: every way over hosts with these memories, and why one cannot be."""
    parts = layer_parts(family, settings, memories, gpu, prompt)
    lines = describe_ways(ways(family, settings, parts, gpu, prompt), memories, chip)
    if len(set(parts)) > 1:
        lines.append(f"layers in parts of {' : '.join(map(str, parts))}, by the hosts' memory")
    if refused := family.sharing_refusal(Sharing(0, parts)):
        lines.append(f"{LAYERS} cannot be shared out over {len(memories)} hosts, for {refused}")
    return [f"on {len(memories)} hosts, seconds a step at best:", *lines]


def describe_ways(found: Sequence[Way], memories: Sequence[int], chip: Chip) -> list[str]:
    """A line each."""
    heads = (f"{'at ' if link == LINKS[0] else ''}{link:g} Gb/s" for link in LINKS)
    lines = [f"{'shared out':<12}{'peak of each host':<24}{'arithmetic':>11}  {'sent a step':<22}" + _row(heads)]
    for way in found:
        peaks, exchange = ", ".join(dict.fromkeys(gigabytes(made.peak_bytes) for made in way.plans)), way.exchange
        arithmetic = f"{way.step_seconds(chip):.2f} s"
        links = [f"{exchange.seconds(len(memories), link):.2f} s" for link in LINKS] if exchange.step_sums else []
        rank = way.lacking(memories)
        short = "" if rank is None else f"  host {rank} has only {gigabytes(memories[rank])}"
        sent = exchange.describe(len(memories))
        lines.append(f"{way.name:<12}{peaks:<24}{arithmetic:>11}  {sent:<22}{_row(links)}{short}")
    return [*lines, *_choices(found, memories, chip)]


def _choices(found: Sequence[Way], memories: Sequence[int], chip: Chip) -> Iterator[str]:
    """Which way pays, by the number of pictures and the link."""
    for pictures in (1, len(memories)):
        alone = {PICTURES: "one host alone"} if pictures == 1 else {}
        try:
            names = [choose_way(found, memories, chip, link, pictures).name for link in LINKS]
        except InsufficientMemoryError as error:
            yield f"nothing fits: {error}"
            return
        by_link = [f"{alone.get(name, name)} at {link:g} Gb/s" for name, link in zip(names, LINKS, strict=True)]
        words = ", ".join(by_link) if len(set(names)) > 1 else alone.get(names[0], names[0])
        yield f"for {'a picture' if pictures == 1 else f'{pictures} pictures or more'}: {words}"


def _row(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>11}" for cell in cells)


def exchange_of(
    family: Family[Any], settings: Settings, gpu: bool | None = None, prompt: Prompt = NO_REFERENCES
) -> Exchange:
    """What is summed over the hosts by a family whose layers are shared out."""
    gpu, tokens = on_gpu() if gpu is None else gpu, count_tokens(family, settings, prompt)
    branches = 2 if settings.cfg > 1 else 1
    roles, components = family.spec.roles, family.components
    step = [
        (seen * bytes_per_token, count)
        for name in family.stages["denoise"]
        for path, bytes_per_token, count in _sums(components[name], gpu)
        if (seen := tokens_through(path, roles, tokens))
    ]
    before = {name: tokens.text for stage in family.encode_stages([prompt]) for name in family.stages[stage]}
    if family.prefix_values:  # what stands before the picture passes through the denoiser once
        before[family.stages["denoise"][0]] = tokens.before if family.prefix_has_text else tokens.prefix
    once = sum(count * each for name, count in before.items() for _, each, _ in _sums(components[name], gpu))
    step_bytes, step_sums = (sum(column) for column in zip(*step, strict=True))
    return Exchange(branches * round(step_bytes), branches * round(step_sums), branches * round(once))


def _sums(component: Component, gpu: bool) -> Iterator[tuple[str, float, float]]:
    """Each layer whose product is summed: its path, the bytes of one token, and its share in one sum."""
    for path, layer, _ in component.planned():
        if isinstance(layer, Linear) and layer.share and layer.share.cut.axis == COLUMNS:
            together = layer.share.cut.together
            yield path, layer.weight.shape[0] * number_bytes(component, gpu) / together, 1 / together


def choose_way(
    found: Sequence[Way], memories: Sequence[int], chip: Chip, gigabits: float = USUAL_LINK, pictures: int = 1
) -> Way:
    """The fastest of those that every host can hold. `memories`: bytes that each host gives."""
    possible = [way for way in found if way.lacking(memories) is None]
    if not possible:
        smallest = min(found, key=lambda way: max(made.peak_bytes for made in way.plans))
        rank = smallest.lacking(memories) or 0
        raise InsufficientMemoryError(
            f"host {rank} gives {gigabytes(memories[rank])}, and where {smallest.name} are shared out its part needs "
            f"{gigabytes(smallest.plans[rank].peak_bytes)}; take a smaller quant, a smaller picture or more hosts."
        )
    return min(possible, key=lambda way: way.seconds(chip, gigabits, pictures))
