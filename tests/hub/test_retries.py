"""What is said while the real client of the hub asks again."""

import http.server
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_imagegen.errors import DownloadError
from mlx_imagegen.hub.download import Download, _explained
from mlx_imagegen.hub.retries import LOGGER, tell_retries

WANTED = Download("Tiny", "someone/tiny", "main", ["*"], "MIT")


class Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client reads its setting once, in whichever test imports it first.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "why"), [(503, "overloaded or down"), (429, "no more requests from here")])
def test_a_busy_hub_is_said_in_a_line_a_try_and_in_the_end(address: str, status: int, why: str) -> None:
    from huggingface_hub.utils import hf_raise_for_status, http_backoff

    lines: list[str] = []
    refused = pytest.raises(DownloadError, match=f"Tiny cannot be downloaded: 127.0.0.1 answers {status}, .*{why}")
    with refused, _explained(WANTED, None), tell_retries(lines.append):
        hf_raise_for_status(http_backoff("GET", f"{address}/{status}", max_retries=2))
    assert lines == [
        f"127.0.0.1 answers {status}; trying again in 1 s (1 of 2)",
        f"127.0.0.1 answers {status}; trying again in 2 s (2 of 2)",
    ]


def test_a_hub_that_does_not_answer_is_said_and_other_lines_are_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger, lines = logging.getLogger(LOGGER), list[str]()
    monkeypatch.setattr(logger, "propagate", True)
    with tell_retries(lines.append):
        logger.warning("'The read operation timed out' thrown while requesting GET https://hub.example/api")
        logger.warning("Rate limited. Waiting 31.0s before retry [Retry 1/5].")
        logger.warning("something else")
        reason = "hub.example does not answer (The read operation timed out)"
        assert lines == [f"{reason}; trying again in 31 s (1 of 5)"]
    logger.warning("Retrying in 1s [Retry 1/5].")
    assert [record.getMessage() for record in caplog.records if record.name == LOGGER] == [
        "something else",
        "Retrying in 1s [Retry 1/5].",
    ]
