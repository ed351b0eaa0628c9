"""Processes that are started as MLX's launcher starts them: one a rank, each with its host file."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SECONDS = 60  # none may take so long; a hang is a failure
ROOT = str(Path(__file__).parents[2])
GIVEN_OUT: set[int] = set()  # ports
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}


def start(
    count: int, arguments: Sequence[str], folder: Path, folders: Sequence[Path] = (), **environment: str
) -> list[subprocess.Popen[str]]:
    """`arguments`: Python's. `folders`: where each rank runs, if not all in the same."""
    ports = free_ports(count)
    hosts = folder / f"hosts-{ports[0]}.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    common = {**os.environ, **ENVIRONMENT, "MLX_HOSTFILE": str(hosts), **environment}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=common | {"MLX_RANK": str(rank)}, cwd=folders[rank] if folders else None,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each; none is left behind."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def free_ports(count: int) -> list[int]:
    """Each is given out once: the system may offer a port again while the process that it was meant for starts."""
    sockets, ports = [], []
    while len(ports) < count:
        sockets.append(socket.create_server(("127.0.0.1", 0)))  # held, for the next to be another
        port = sockets[-1].getsockname()[1]
        if port not in GIVEN_OUT:
            ports.append(port)
            GIVEN_OUT.add(port)
    for opened in sockets:
        opened.close()
    return ports
