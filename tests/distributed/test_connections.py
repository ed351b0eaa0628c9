"""How ranks find each other: by what they say first, whoever else connects."""

import socket
import threading

import pytest

from mlx_imagegen.distributed import connections
from mlx_imagegen.launched import Launch
from tests.distributed import ranks
from tests.distributed.ranks import free_ports


def test_no_port_is_given_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the system offers one again that was closed."""

    class Offered:
        def __init__(self, port: int):
            self.port = port

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", self.port

        def close(self) -> None:
            pass

    offers = iter([1, 2, 2, 1, 3])
    monkeypatch.setattr(ranks, "GIVEN_OUT", set())
    monkeypatch.setattr("socket.create_server", lambda address: Offered(next(offers)))
    assert (free_ports(2), free_ports(1)) == ([1, 2], [3])


def test_a_stranger_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HELLO_SECONDS", 0.05)
    address = ("127.0.0.1", free_ports(1)[0])
    joined: list[int] = []
    with socket.create_server(address) as listener, socket.create_connection(address) as stranger:
        monkeypatch.setattr(connections, "_listener", lambda address: listener)
        ranks = [
            threading.Thread(
                target=lambda rank=rank: joined.append(len(connections.connect(Launch(rank, 2, address, "ring"))[1])),
                daemon=True,
            )
            for rank in (0, 1)
        ]
        for thread in ranks:
            thread.start()
        for thread in ranks:
            thread.join(5)
        assert stranger.fileno() and joined == [2, 2]
