"""What to say while the hub's client asks again: a line a try, in place of its own two with long addresses.

In: what the client logs. Out: lines for the caller. Whatever else it logs is left as it is.
Must not know: what is downloaded.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

LOGGER = "huggingface_hub.utils._http"
FAILED = re.compile(
    r"(?:HTTP Error (?P<status>\d+)|'(?P<error>.*)') thrown while requesting \w+ (?P<address>\S+)", re.S
)
AGAIN = re.compile(r"(?P<seconds>[\d.]+)s.* \[Retry (?P<count>\d+)/(?P<most>\d+)\]", re.S)


@contextmanager
def tell_retries(tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, in whichever thread the client works."""
    failure = threading.local()

    def is_other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if found := FAILED.match(text):
            failure.text = _failure(found)
        elif found := AGAIN.search(text):
            reason = getattr(failure, "text", "the hub does not answer")
            tell(f"{reason}; trying again in {float(found['seconds']):.0f} s ({found['count']} of {found['most']})")
        else:
            return True
        return False

    logger = logging.getLogger(LOGGER)
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def host_of(address: str) -> str:
    return urlsplit(address).hostname or "the hub"


def _failure(found: re.Match[str]) -> str:
    host = host_of(found["address"])
    return (
        f"{host} answers {found['status']}" if found["status"] else f"{host} does not answer ({found['error'][:100]})"
    )
