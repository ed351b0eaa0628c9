"""Which way of sharing a request is drawn in: as asked, or the one that pays.

In: what was asked for, the jobs and the number of ranks. Out: the name of a way; an error that says why one cannot be.
Must not know: how any of them works.
"""

from collections.abc import Sequence

from ..errors import RequestError
from ..request.job import Job
from .branches import why_not_branches

AUTO, PICTURES, BRANCHES = "auto", "pictures", "branches"
MODES = (AUTO, PICTURES, BRANCHES)


def choose(asked: str, jobs: Sequence[Job], ranks: int) -> str:
    """Pictures cost nothing to share out, and are better as long as every rank has one."""
    why_not = why_not_branches(jobs, ranks)
    if asked == BRANCHES and why_not:
        raise RequestError(f"--parallel {BRANCHES}: {why_not}.")
    if asked != AUTO:
        return asked
    return BRANCHES if len(jobs) < ranks and not why_not else PICTURES
