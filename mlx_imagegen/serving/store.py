"""Jobs by id: those that wait or run, and for a while those that are finished, with their results.

In: jobs. Out: the job of an id, and all of them. Finished ones go when they are old, or when results take too much
memory, the oldest first.
Must not know: what a job does.
"""

import threading
import time

from .jobs import Job

KEEP_SECONDS = 60 * 60
KEEP_BYTES = 128 * 10**6  # of pictures, unpacked: forty of 1024x1024
KEEP_JOBS = 1000


class JobStore:
    def __init__(self, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES, keep_jobs: int = KEEP_JOBS):
        self.keep_seconds = keep_seconds
        self.keep_bytes = keep_bytes
        self.keep_jobs = keep_jobs
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job
        self.expire()

    def get(self, id: str) -> Job | None:
        self.expire()
        return self._jobs.get(id)

    def all(self) -> list[Job]:
        """The newest first."""
        self.expire()
        with self._lock:
            return list(reversed(self._jobs.values()))

    def expire(self) -> None:
        """The latest finished job stays, however large its pictures are: its client has yet to fetch them."""
        with self._lock:
            finished = [job for job in self._jobs.values() if job.finished]
            nbytes, count = sum(job.nbytes for job in finished), len(finished)
            oldest = time.time() - self.keep_seconds
            for job in sorted(finished[:-1], key=lambda job: job.ended or 0):
                if nbytes <= self.keep_bytes and count <= self.keep_jobs and (job.ended or 0) >= oldest:
                    break
                del self._jobs[job.id]
                nbytes, count = nbytes - job.nbytes, count - 1
