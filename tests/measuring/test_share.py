"""`bench --share`: what was measured becomes a file that `plan` reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

from mlx_imagegen.measuring import environment as environment_module
from mlx_imagegen.measuring.bench import Row, Spread
from mlx_imagegen.measuring.share import MACHINE, shared, write_shared
from mlx_imagegen.planning.measurements import estimate, is_usable, measurements

Cli = Callable[..., Ran]
WHERE: dict[str, str | None] = {
    "device": "Apple M2 Max", "system": "macOS 26.3", "memory": "64.0 GB", "mlx": "0.32.4", "mlx-imagegen": "0.1.0",
    "platform": "a-name-of-its-own", "date": "2026-11-28",
}  # fmt: skip


def row(model: str = "flux-schnell", quant: str = "q8", seconds: float = 10.4) -> Row:
    made = Row(f"/Users/me/{model}", quant, (1024, 1024), manifest=model, steps=4)
    made.step_seconds = Spread(seconds, seconds, seconds)
    made.mlx_peak_bytes = {"step": 9 * 10**9, "decode": 3 * 10**9}
    return made


def test_what_is_shared_is_read_as_measured_here(tmp_path: Path) -> None:
    failed = Row("flux-dev", "q4", (1024, 1024), "no room")
    write_shared([row(), row(quant="none"), failed], WHERE, tmp_path / "mine.json")
    first, second = measurements(tmp_path)
    assert (first.chips, first.model, first.quant, first.seconds_per_step) == (("m2-max",), "flux-schnell", "q8", 10.4)
    assert first.peak_bytes == 9 * 10**9 and first.source == "mine" and not first.published and second.quant is None
    assert is_usable(first) and first.program == "mlx-imagegen 0.1.0"
    found = estimate("m2-max", "flux-schnell", "q8", measurements(tmp_path))
    assert found is not None and found.seconds(4 * 69.46 / 13.6) == pytest.approx(4 * 10.4, rel=1e-3)


def test_nothing_of_the_user_is_in_it() -> None:
    data = shared([row()], WHERE)
    assert set(data) == {"machine", "rows"} and set(data["machine"]) == set(MACHINE)
    assert "/Users" not in json.dumps(data) and "a-name-of-its-own" not in json.dumps(data)


def test_the_command_writes_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment_module.environment()
    monkeypatch.setattr(environment_module, "environment", lambda: real | {"device": "Apple M4"})
    path = tmp_path / "share.json"
    run = ("bench", "--model", "flux-demo", "--quant", "q8", "--steps", "2", "--repeat", "1", "--warm-up", "0")
    assert cli(*run, "--share", path).code == 0
    (found,) = json.loads(path.read_text())["rows"]
    assert found["chips"] == ["m4"] and found["model"] == "flux-demo" and 0 < found["seconds_per_step"] < 60
    assert found["peak_bytes"] > 10**6
    assert cli(*run, "--share", tmp_path / "no" / "file.json").code == 2
