"""What the guide shows runs."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_imagegen.commands import mcp, serve

from .conftest import LiveServer

GUIDE = (Path(__file__).parents[2] / "examples/guides/serve.md").read_text(encoding="utf-8")


def test_the_clients_code_runs(
    live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```py\n(.*?)```", GUIDE, re.DOTALL)
    steps = code.replace('"steps": 4', '"steps": 4, "width": 48, "height": 32')
    exec(compile(steps.replace("http://127.0.0.1:8642", live.url), "serve.md", "exec"), {"__name__": "__main__"})
    assert Image.open("lighthouse.png").size == (48, 32)
    assert capsys.readouterr().out.split() == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert live.service.store.all()[0].prompt == "a lighthouse in snow"


def test_the_commands_and_flags_exist() -> None:
    parsers: dict[str, Any] = {}
    for name, command in (("serve", serve), ("mcp", mcp)):
        parsers[name] = argparse.ArgumentParser()
        command.flags(parsers[name])
    lines = re.findall(r"mlx-imagegen (serve|mcp)([^`\n]*)", GUIDE)
    assert len(lines) >= 4
    for name, words in lines:
        parsers[name].parse_args(words.split())
    shown = set(re.findall(r"`(--[\w-]+)", GUIDE))
    assert shown <= {flag for parser in parsers.values() for flag in parser._option_string_actions}


def test_the_addresses_exist(live: LiveServer) -> None:
    routes = {route.path for route in live.server.config.app.routes}  # type: ignore[union-attr]
    for path in re.findall(r"`(?:GET|POST|DELETE) (/[^`]*)`", GUIDE):
        pattern = path.replace("ID", "{id}").replace("NAME", "{name:path}").replace("0.png", "{index:int}.{form}")
        assert pattern in routes, path
