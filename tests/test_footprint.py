"""A process's peak of memory, as each system counts it."""

import ctypes
import sys
from typing import Any

import pytest

from mlx_imagegen import footprint
from mlx_imagegen.footprint import process_peak_bytes

PEAK = 3_456_789_012
REVISION_1_WORDS = 38  # the struct as far as `phys_footprint`, without the peak


class TaskVmInfo(ctypes.Structure):
    """struct task_vm_info of mach/task_info.h, up to its third revision's first fields."""

    _pack_ = 4
    _fields_ = [
        ("virtual_size", ctypes.c_uint64), ("region_count", ctypes.c_int32), ("page_size", ctypes.c_int32),
        *((name, ctypes.c_uint64) for name in """
            resident_size resident_size_peak device device_peak internal internal_peak external external_peak reusable
            reusable_peak purgeable_volatile_pmap purgeable_volatile_resident purgeable_volatile_virtual compressed
            compressed_peak compressed_lifetime phys_footprint min_address max_address""".split()),
        ("ledger_phys_footprint_peak", ctypes.c_int64), ("ledger_purgeable_nonvolatile", ctypes.c_int64),
    ]  # fmt: skip


class Kernel:
    """libSystem, as far as it is asked. `words`: how much of the struct this system knows."""

    def __init__(self, words: int = ctypes.sizeof(TaskVmInfo) // 4, result: int = 0):
        self.words, self.result = words, result

    def task_info(self, task: ctypes.c_uint32, flavor: int, buffer: Any, count: Any) -> int:
        assert (task.value, flavor) == (259, 22)
        info, room = TaskVmInfo(phys_footprint=1, ledger_phys_footprint_peak=PEAK), count._obj
        room.value = min(room.value, self.words)
        ctypes.memmove(buffer, ctypes.byref(info), min(room.value * 4, ctypes.sizeof(info)))
        return self.result


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    class Port(ctypes.c_uint32):
        @classmethod
        def in_dll(cls, library: Kernel, name: str) -> "Port":
            assert name == "mach_task_self_"
            return cls(259)

    if sys.platform != "darwin":
        monkeypatch.setattr(footprint.ctypes, "c_uint32", Port)


not_on_a_mac = pytest.mark.skipif(sys.platform == "darwin", reason="there the real one is asked")


@not_on_a_mac
def test_a_mac_s_peak_is_that_of_the_physical_footprint() -> None:
    assert footprint._physical_footprint_peak(Kernel()) == PEAK


@not_on_a_mac
@pytest.mark.parametrize("kernel", [Kernel(REVISION_1_WORDS), Kernel(result=4), object()])
def test_a_system_that_does_not_say_is_asked_otherwise(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert footprint._physical_footprint_peak(kernel) is None
    monkeypatch.setattr(footprint.sys, "platform", "darwin")
    monkeypatch.setattr(footprint.ctypes, "CDLL", lambda _: kernel)
    assert process_peak_bytes() > 10**4  # ru_maxrss: bytes there, kilobytes here


def test_the_peak_grows_with_what_is_held_and_stays() -> None:
    before = process_peak_bytes()
    held = bytearray(before + 10**8)
    held[:: 2**12] = b"1" * len(held[:: 2**12])  # touched: untouched pages take nothing
    grown = process_peak_bytes()
    del held
    assert before + 9 * 10**7 < grown and process_peak_bytes() > grown - 10**7  # Linux counts in batches of pages
