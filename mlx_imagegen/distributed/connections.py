"""The TCP connections between rank 0 and the others, made before anything else is opened.

In: a `Launch`. Out: the links, and every rank's name. If a rank does not connect in time, or runs another version, all
ranks raise an error. Must not know: what is sent later.
"""

import importlib.metadata
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

from .. import __version__
from ..errors import DistributedError
from ..launched import Launch
from .messages import Link, Message

JOIN_SECONDS = 60.0  # for all ranks to connect: hosts start Python at different speeds
RETRY_SECONDS = 0.1
HELLO_SECONDS = 5.0  # a rank says at once who it is


def connect(launch: Launch) -> tuple[dict[int, Link], list[str]]:
    """Rank 0's links to all others, or another one's to rank 0; and the names of all ranks' hosts."""
    deadline = time.monotonic() + JOIN_SECONDS
    return _accept_all(launch, deadline) if launch.rank == 0 else _connect_to_first(launch, deadline)


def _accept_all(launch: Launch, deadline: float) -> tuple[dict[int, Link], list[str]]:
    """The port is free again afterwards: MLX's own backend listens there next."""
    hello = _hello(launch)
    hellos: dict[int, Message] = {0: hello}
    links: dict[int, Link] = {}
    with _listener(launch.address) as listener:
        while len(hellos) < launch.size:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                link = _link(listener.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(rank) for rank in range(launch.size) if rank not in hellos)
                raise _reported(
                    links,
                    f"rank {missing} did not connect to {_place(launch)} in time; see that mlx.launch starts "
                    "mlx-imagegen on every host, and that no firewall blocks it.",
                ) from None
            try:
                if not link.has_message(HELLO_SECONDS):
                    raise EOFError
                received = link.receive()
                rank = int(received["rank"])
            except (OSError, EOFError, ValueError, KeyError):  # not one of ours
                link.close()
                continue
            hellos[rank], links[rank] = received, link
    names = [str(hellos[rank]["host"]) for rank in range(launch.size)]
    if different := _difference(hellos):
        raise _reported(links, different)
    for link in links.values():
        link.send({"names": names})
    return links, names


def _connect_to_first(launch: Launch, deadline: float) -> tuple[dict[int, Link], list[str]]:
    while True:
        try:
            link = _link(socket.create_connection(launch.address, timeout=max(deadline - time.monotonic(), 0.001)))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"rank {launch.rank} cannot reach rank 0 at {_place(launch)} ({error}); see that this is the "
                    "address that the other hosts have it by."
                ) from error
            time.sleep(RETRY_SECONDS)
    try:
        link.send(_hello(launch))
        welcome = link.receive()
    except (OSError, EOFError) as error:
        raise DistributedError("rank 0 has ended before all ranks were connected.") from error
    if "failed" in welcome:
        raise DistributedError(str(welcome["failed"]))
    return {0: link}, list(welcome["names"])


def _listener(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address)
    except OSError as error:
        raise DistributedError(
            f"rank 0 cannot listen at {address[0]}:{address[1]} ({error.strerror or error}); give mlx.launch another "
            "--starting-port, or the host its own address."
        ) from error


def _link(connected: socket.socket) -> Link:
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(Connection(connected.detach()))


def _hello(launch: Launch) -> Message:
    return {
        "rank": launch.rank,
        "host": socket.gethostname().partition(".")[0],
        "mlx-imagegen": __version__,
        "mlx": importlib.metadata.version("mlx"),
    }


def _difference(hellos: Mapping[int, Message]) -> str | None:
    """The first rank that has another version of something than rank 0."""
    for rank in sorted(hellos):
        for package in ("mlx-imagegen", "mlx"):
            if hellos[rank].get(package) != hellos[0][package]:
                return (
                    f"rank {rank} ({hellos[rank]['host']}) has {package} {hellos[rank].get(package)}, and rank 0 "
                    f"({hellos[0]['host']}) has {hellos[0][package]}; install the same version on both."
                )
    return None


def _reported(links: Mapping[int, Link], reason: str) -> DistributedError:
    """The error, after it was sent to the other ranks."""
    for link in links.values():
        link.send({"failed": reason})
    return DistributedError(reason)


def _place(launch: Launch) -> str:
    return f"{launch.address[0]}:{launch.address[1]}"
