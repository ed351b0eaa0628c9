"""Messages between two ranks: JSON followed by arrays and files, over one TCP connection.

Nothing received is executed or unpickled. Must not know: what messages mean.
"""

import io
import json
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Message = dict[str, Any]
LARGEST_BYTES = 1 << 30
ARRAY, BYTES = "$array", "$bytes"


class Link:
    """A connection to another rank. Threads may share it for sending."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sending = threading.Lock()
        self.heard = time.monotonic()  # when the last message came

    def send(self, message: Message) -> None:
        """`message`: JSON values, paths, NumPy arrays and bytes."""
        blobs: list[bytes] = []
        text = json.dumps(message, default=lambda value: _blob(value, blobs)).encode()
        with self._sending:
            for frame in (len(blobs).to_bytes(4, "big") + text, *blobs):
                self._connection.send_bytes(frame)

    def beat(self) -> None:
        """Sends an empty message, unless another one is being sent."""
        if self._sending.acquire(blocking=False):
            try:
                self._connection.send_bytes(b"")
            finally:
                self._sending.release()

    def has_message(self, seconds: float) -> bool:
        """Whether a message arrives within this many seconds."""
        return self._connection.poll(seconds)

    def receive(self) -> Message:
        """The next message that is not empty; EOFError or OSError after the last."""
        while not (frame := self._frame()):
            pass
        blobs = [self._frame() for _ in range(int.from_bytes(frame[:4], "big"))]
        message: Message = json.loads(frame[4:], object_hook=lambda value: _value(value, blobs))
        return message

    def close(self) -> None:
        self._connection.close()

    def _frame(self) -> bytes:
        frame = self._connection.recv_bytes(LARGEST_BYTES)
        self.heard = time.monotonic()
        return frame


def _blob(value: Any, blobs: list[bytes]) -> dict[str, int] | str:
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        blobs.append(file.getvalue())
        return {ARRAY: len(blobs) - 1}
    if isinstance(value, bytes):
        blobs.append(value)
        return {BYTES: len(blobs) - 1}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _value(value: dict[str, Any], blobs: list[bytes]) -> Any:
    if value.keys() == {ARRAY}:
        return np.load(io.BytesIO(blobs[value[ARRAY]]), allow_pickle=False)
    if value.keys() == {BYTES}:
        return blobs[value[BYTES]]
    return value
