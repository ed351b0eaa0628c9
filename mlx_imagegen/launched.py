"""Whether this process is one of several ranks that MLX's launcher started, and where rank 0 is.

In: the environment that `mlx.launch` sets. Out: rank, number of ranks, addresses. Opens no connection.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from .errors import RequestError

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Launch(NamedTuple):
    rank: int
    size: int
    address: tuple[str, int]  # of rank 0, free until MLX's own collectives begin
    backend: str


def launch() -> Launch | None:
    """None in a process that runs alone."""
    if any(int(os.environ.get(name, "1")) > 1 for name in MPI_SIZES):
        raise RequestError(
            "this process was started by MPI, over which only arrays can be sent; launch with mlx.launch --backend "
            "ring (or jaccl)."
        )
    if "MLX_RANK" not in os.environ:
        return None
    rank = int(os.environ["MLX_RANK"])
    if coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
        devices = _read("MLX_IBV_DEVICES")
        return Launch(rank, len(devices), _address(coordinator), "jaccl")
    hosts = _read("MLX_HOSTFILE")
    return Launch(rank, len(hosts), _address(hosts[0][0]), "ring") if len(hosts) > 1 else None


def _read(variable: str) -> list[list[str]]:
    """The launcher writes an empty file for a single host."""
    path = os.environ.get(variable, "")
    try:
        text = Path(path).read_text().strip()
        hosts: list[list[str]] = json.loads(text) if text else []
        return hosts
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{variable}={path}: the list of hosts cannot be read ({error}); start the ranks with mlx.launch."
        ) from error


def _address(place: str) -> tuple[str, int]:
    """192.168.1.2:32323"""
    host, _, port = place.rpartition(":")
    return host, int(port)
