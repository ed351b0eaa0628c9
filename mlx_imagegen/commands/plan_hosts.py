"""`plan --hosts`: how one model's work could be shared out over several Macs."""

from collections.abc import Sequence
from typing import Any

from ..errors import RequestError
from ..families.base import Family
from ..layers.sharing import Sharing
from ..machine import GIB, working_set_of
from ..planning.chips import Chip
from ..planning.hosts import LAYERS, describe_ways, layer_parts, ways
from ..request.job import Job


def check_hosts(count: int | None, memories: Sequence[float] | None, model: str | None) -> None:
    """Raises for flags that do not go together."""
    if count is None:
        if memories and len(memories) > 1:
            raise RequestError(
                f"--memory has {len(memories)} numbers for one machine; give --hosts {len(memories)} too."
            )
        return
    if count < 2:
        raise RequestError(f"--hosts {count}: give 2 or more.")
    if model is None:
        raise RequestError("--hosts needs a model to share out; give --model.")
    if memories and len(memories) not in (1, count):
        raise RequestError(
            f"--memory has {len(memories)} numbers for {count} hosts; give one for each, or one for all."
        )


def hosts_lines(
    count: int,
    memories: Sequence[float] | None,
    usable_bytes: int,
    family: Family[Any],
    job: Job,
    chip: Chip,
    gpu: bool,
) -> list[str]:
    """`memories`: each host's, in GB, or the same for all; `usable_bytes`: of this machine, in their place."""
    each = [working_set_of(int(memory * GIB)) for memory in memories or ()] or [usable_bytes]
    usable = each * count if len(each) == 1 else each
    parts = layer_parts(family, job.settings, usable, gpu, job.prompt)
    found = ways(family, job.settings, parts, gpu, job.prompt)
    refused = family.sharing_refusal(Sharing(0, parts))
    uneven = [f"layers in parts of {' : '.join(map(str, parts))}, by the hosts' memory"] if len(set(parts)) > 1 else []
    why_not = [f"{LAYERS} cannot be shared out over {count} hosts, for {refused}"] if refused else []
    return [f"on {count} hosts, seconds a step at best:", *describe_ways(found, usable, chip), *uneven, *why_not]
