"""How much a run may hold, and whether the GPU's matrix units are used: pretended Macs."""

from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen import machine, precision
from mlx_imagegen.machine import GIB, memory_limit, system, working_set_of


@pytest.fixture
def a_mac(monkeypatch: pytest.MonkeyPatch) -> Any:
    """a_mac(memory, working_set, architecture, macos, wheel)"""

    def make(
        memory: int = 64 * GIB, working_set: int = 48 * GIB, architecture: str = "applegpu_g16s",
        macos: tuple[int, ...] = (26, 2), wheel: int | None = 26,
    ) -> None:  # fmt: skip
        info = {"max_recommended_working_set_size": working_set, "architecture": architecture}
        monkeypatch.setattr(mx, "device_info", lambda _: info)
        monkeypatch.setattr(machine, "on_gpu", lambda: True)
        monkeypatch.setattr(precision, "on_gpu", lambda: True)
        monkeypatch.setattr(machine, "physical_bytes", lambda: memory)
        monkeypatch.setattr(machine, "macos_version", lambda: macos)
        monkeypatch.setattr(machine, "wheel_macos", lambda: wheel)

    return make


def test_a_gpu_may_hold_its_working_set_and_no_more(a_mac: Any) -> None:
    a_mac(64 * GIB, 48 * GIB)
    limit = memory_limit()
    assert (limit.most_bytes, limit.usable_bytes) == (48 * GIB, 48 * GIB)
    assert str(limit) == "this machine's GPU may hold 51.5 of 68.7 GB"
    a_mac(64 * GIB, 60 * GIB)  # raised by iogpu.wired_limit_mb
    assert memory_limit().most_bytes == 60 * GIB


def test_a_cpu_may_hold_all_and_uses_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_bytes", lambda: 10 * 10**9)
    limit = memory_limit()
    assert (limit.most_bytes, limit.usable_bytes) == (10 * 10**9, 7 * 10**9)
    assert str(limit) == "this machine has 10.0 GB"


@pytest.mark.parametrize(("gib", "expected"), [(8, 16 / 3), (16, 32 / 3), (32, 64 / 3), (36, 27), (64, 48), (128, 96)])
def test_another_mac_s_working_set_follows_from_its_memory(gib: int, expected: float) -> None:
    assert working_set_of(gib * GIB) == pytest.approx(expected * GIB, abs=1)


@pytest.mark.parametrize(
    ("mac", "expected"),
    [
        ({"architecture": "applegpu_g17s"}, "in use"),
        ({"architecture": "applegpu_g17g", "wheel": None}, "in use"),  # built from source
        ({"architecture": "applegpu_g16s"}, "none"),
        ({"architecture": "applegpu_g17p"}, "none"),  # a phone's
        ({"architecture": "applegpu_g18p"}, "in use"),
        ({"architecture": "applegpu_g17s", "macos": (26, 1)}, "not used: they need macOS 26.2"),
        (
            {"architecture": "applegpu_g17s", "macos": (26, 4, 1), "wheel": 15},
            "not used: MLX's wheel is for macOS 15, and they need the one for 26",
        ),
        ({"architecture": ""}, "none"),
    ],
)
def test_matrix_units_need_the_chip_the_system_and_the_wheel(a_mac: Any, mac: dict[str, Any], expected: str) -> None:
    a_mac(**mac)
    assert machine.matrix_units() == expected


def test_the_system_is_named_with_macos_version(a_mac: Any) -> None:
    a_mac(macos=(15, 6, 1))
    assert system() == "macOS 15.6.1"
    a_mac(macos=())
    assert system() in ("Linux", "Darwin")


def test_the_wheel_s_macos_is_read_off_its_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wheel:
        def read_text(self, name: str) -> str:
            return "Wheel-Version: 1.0\nTag: py3-none-macosx_26_0_arm64\n" if name == "WHEEL" else ""

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Wheel())
    machine.wheel_macos.cache_clear()
    try:
        assert machine.wheel_macos() == 26
    finally:
        machine.wheel_macos.cache_clear()
