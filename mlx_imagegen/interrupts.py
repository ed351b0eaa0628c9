"""Ctrl-C in the program: one line and exit code 130, at whatever moment it comes.

While a command runs, it raises KeyboardInterrupt, which cleans up. Before, while modules are imported, and after, while
threads end, there is nothing to clean up, and the process ends at once.
Out: handlers of SIGINT, in the program only. Must not know: any command; must not import a module that has to be read.
"""

# What `signal` reads, with modules of its own, takes a tenth of the program's start.
import _signal  # type: ignore[import-not-found]
import atexit
import os
import sys

CODE = 130
LINE = "mlx-imagegen: interrupted; every file that was written is whole."
PROGRAM = "mlx-imagegen"
MODULES = ("mlx_imagegen", "mlx_imagegen.quantize")  # what `python -m` starts as the program
_is_interrupted = False


def is_program() -> bool:
    """Of this process, while the package is imported: `python -m` calls itself "-m" until it has found the module."""
    started = sys.argv[0] if sys.argv else ""
    return started.endswith(PROGRAM) or (started == "-m" and any(name in sys.orig_argv for name in MODULES))


def begin() -> None:
    """At the program's start. A shell's background jobs ignore Ctrl-C, and go on ignoring it."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _end)
        atexit.register(_leave)  # first, so that it is called last


class Raised:
    """A context in which Ctrl-C raises KeyboardInterrupt. Outside the program it changes nothing."""

    def __enter__(self) -> None:
        self._is_ours = _signal.getsignal(_signal.SIGINT) is _end
        if self._is_ours:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            _signal.signal(_signal.SIGINT, _end)


def report() -> int:
    """The exit code, once the command is interrupted."""
    global _is_interrupted  # noqa: PLW0603
    _is_interrupted = True
    print(LINE, file=sys.stderr)
    return CODE


def _end(*_: object) -> None:
    try:
        if not _is_interrupted:
            os.write(2, f"{LINE}\n".encode())
    finally:
        os._exit(CODE)


def _leave() -> None:
    """Python resets its handlers next. It also ends itself by SIGINT where KeyboardInterrupt has passed through `exec`,
    which dataclasses call, even if the exception was caught."""
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    if _is_interrupted:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(CODE)
