"""How ranks find each other: by what they say first, whoever else connects."""

import socket
import threading

import pytest

from mlx_imagegen.distributed import connections
from mlx_imagegen.launched import Launch
from tests.distributed.ranks import free_ports


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
