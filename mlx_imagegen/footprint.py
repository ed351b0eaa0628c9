"""The most memory that this process ever held.

In: what the system keeps of every process. Out: bytes. On a Mac the peak of the physical footprint, as Activity Monitor
shows it: ru_maxrss there leaves out what Metal allocates. On Linux VmHWM: ru_maxrss begins with what the parent held.
Must not know: MLX.
"""

import ctypes
import resource
import struct
import sys
from pathlib import Path
from typing import Any

# mach/task_info.h: the flavor, and where `ledger_phys_footprint_peak` lies in struct task_vm_info. The kernel fills in
# as much of the struct as the buffer has room for, and says how much that was in 4-byte words.
TASK_VM_INFO = 22
PEAK_OFFSET, PEAK_FORMAT = 168, "<q"
BUFFER_BYTES, WORD_BYTES = 1024, 4


def process_peak_bytes() -> int:
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return _physical_footprint_peak(ctypes.CDLL(None)) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _physical_footprint_peak(library: Any) -> int | None:
    """None where the system does not say."""
    buffer, count = ctypes.create_string_buffer(BUFFER_BYTES), ctypes.c_uint32(BUFFER_BYTES // WORD_BYTES)
    try:
        task = ctypes.c_uint32.in_dll(library, "mach_task_self_")
        failed = library.task_info(task, TASK_VM_INFO, buffer, ctypes.byref(count))
    except (AttributeError, ValueError):  # no such symbol
        return None
    if failed or count.value * WORD_BYTES < PEAK_OFFSET + struct.calcsize(PEAK_FORMAT):
        return None
    peak: int = struct.unpack_from(PEAK_FORMAT, buffer.raw, PEAK_OFFSET)[0]
    return peak or None
