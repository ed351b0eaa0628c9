"""MCP, asked by the official client, over the standard streams of a process of its own."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.request.parameters import BY_NAME
from mlx_imagegen.serving.service import Service
from mlx_imagegen.serving.tools import Tools

from .conftest import LONG, SMALL, in_base64, opened, png, same

mcp = pytest.importorskip("mcp")


def run(folder: Path, models: Path, work: Callable[[Any], Awaitable[None]]) -> None:
    """`work` with a client of a server that writes into `folder`."""
    words = ["-m", "mlx_imagegen", "mcp", "--model", str(models / "tiny"), "-o", str(folder)]
    root = str(Path(__file__).parents[2])
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=words, env={**os.environ, "PYTHONPATH": root}, cwd=str(folder.parent)
    )

    async def main() -> None:
        async with mcp.Client(mcp.stdio_client(parameters)) as client:
            await work(client)

    asyncio.run(asyncio.wait_for(main(), 120))


def test_an_agents_session(tmp_path: Path, models_folder: Path, drawn: Callable[..., Image.Image]) -> None:
    """One process for all, since it takes a second to start."""
    output = tmp_path / "out"

    async def work(client: Any) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["generate", "edit", "check", "cancel", "plan", "models"]
        assert tools["generate"].input_schema["properties"]["steps"]["description"] == BY_NAME["steps"].help

        answer = await client.call_tool("generate", {"prompt": "a hen", "seed": 3, "count": 2, **SMALL})
        facts = answer.structured_content
        assert facts["state"] == "done" and facts["seeds"] == [3, 4] and not answer.is_error
        assert same(Image.open(facts["files"][1]), drawn("a hen", seed=4))
        assert [each.type for each in answer.content] == ["text", "image", "image"]
        assert opened(answer.content[1].data).format == "JPEG" and json.loads(answer.content[0].text) == facts

        name = Path(facts["files"][0]).name
        edit = {"prompt": "a hen", "images": [name], "seed": 3, "steps": 2, "strength": 0.9}
        edited = (await client.call_tool("edit", edit)).structured_content
        expected = drawn("a hen", seed=3, image=drawn("a hen", seed=3), strength=0.9)
        assert same(Image.open(edited["files"][0]), expected)
        masked = await client.call_tool("edit", edit | {"mask": name})
        assert not masked.is_error

        lasting = {"prompt": "a hen", "wait": 0, **LONG, "width": 512, "height": 512}  # it is cancelled
        long = (await client.call_tool("generate", lasting)).structured_content
        assert long["state"] in ("queued", "preparing", "drawing") and long["id"] in long["next"]
        checked = long
        while checked["state"] != "drawing" or not checked.get("step"):  # a busy machine takes its time to begin
            checked = (await client.call_tool("check", {"job": long["id"], "wait": 0.2})).structured_content
            assert checked["state"] in ("queued", "preparing", "drawing")
        assert checked["steps"] == 200 and 0 < checked["step"] < 200
        stopped = (await client.call_tool("cancel", {"job": long["id"]})).structured_content
        assert stopped["state"] == "cancelled" and stopped["files"] == []

        plans = (await client.call_tool("plan", {"model": "flux-demo"})).structured_content["plans"]
        assert [plan["quant"] for plan in plans] == ["none", "q8", "q6", "q4"] and all(plan["fits"] for plan in plans)
        models = (await client.call_tool("models", {})).structured_content
        assert models["default"] == "tiny" and models["models"][0]["model"] == "tiny"

        for tool, arguments, message in (
            ("generate", {"prompt": "a hen", "guidance_scale": 3}, "no argument 'guidance_scale'"),
            ("generate", {"prompt": ""}, "prompt is empty"),
            ("generate", {"prompt": "a hen", "model": "/etc"}, "no model is called"),
            ("edit", {"prompt": "a hen", "images": ["/etc/passwd"]}, "is no picture in"),
            ("check", {"job": "nothing"}, "there is no job"),
            ("paint", {}, "no tool"),
        ):
            refused = await client.call_tool(tool, arguments)
            assert refused.is_error and message in refused.content[0].text, refused

    run(output, models_folder, work)
    assert len(list(output.iterdir())) == 4


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "link.png", "~/x.png", "notes.txt", 7, "..", "out/.."]
)
def test_pictures_outside_the_folders_are_not_read(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "notes.txt").write_text("x")
    (folder / "own.png").write_bytes(png("red"))
    tools = Tools(Service.__new__(Service), folder)
    assert tools._read("own.png") == tools._read(str(folder / "own.png")) == png("red")
    with pytest.raises(RequestError, match="is no picture in|give a file"):
        tools._read(name)
    allowed = Tools(Service.__new__(Service), folder, (tmp_path,))
    assert in_base64(allowed._read("secret.png")) == in_base64(png())
