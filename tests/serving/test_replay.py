"""A record as a command line and as Python: both make the same request again."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import mlx_imagegen
from mlx_imagegen.cli import Parser
from mlx_imagegen.commands import generate
from mlx_imagegen.commands.requests import read_requests
from mlx_imagegen.serving.replay import command_line, python_code

RECORDS: list[dict[str, Any]] = [
    {"prompt": "a hen", "seed": 3, "steps": 8, "width": 128, "height": 64, "guidance": 2.5, "model": "flux-demo"},
    {
        "prompt": "-a 'hen'\n\"quoted\" $HOME",
        "negative_prompt": " ",
        "seed": 2**64 - 1,
        "model": "qwen-demo",
        "quant": "q6",
    },
    {"prompt": "x", "negative_prompt": "-no", "seed": 1, "lora": [["ink", 0.5], ["night", 1.0]], "lora_partial": True},
    {
        "prompt": "x",
        "timesteps": [999.0, 500.0],
        "noise_scale": [8.0, 7.0],
        "blend_seams": "adaptive",
        "sampler": "flash",
    },
    {"prompt": "x", "layout": [[0.0, 0.5, 0.0, 1.0]], "keep_original_aspect": True},
]


@pytest.mark.parametrize("record", RECORDS)
def test_both_ask_for_the_same(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser()
    generate.flags(parser)
    program, command, *words = shlex.split(command_line(record | {"manifest": "flux-demo", "revision": None}))
    assert (program, command) == ("mlx-imagegen", "generate")
    opening, (request,) = read_requests(parser.parse_args(words))
    asked = opening | request
    asked["lora"] = [list(each) if isinstance(each, tuple) else [each, 1.0] for each in asked.get("lora", [])]
    assert asked == {"lora": [], **record}

    given: dict[str, Any] = {}
    monkeypatch.setattr(
        mlx_imagegen, "generate", lambda prompt, **rest: given.update(rest, prompt=prompt), raising=False
    )
    exec(compile(python_code(record), "shown", "exec"), {})
    given["lora"] = [list(each) for each in given.get("lora", [])]
    assert given == {"lora": [], **record}


def test_pictures_keep_what_goes_with_them() -> None:
    """Each with a flag of its own: how strongly, by which network, in which steps."""
    record = {
        "prompt": "x",
        "control_sha256": [
            {
                "sha256": "01",
                "model": "net-a",
                "strength": 0.7,
                "kind": "canny",
                "start": 0.0,
                "end": 0.8,
                "edges": [1, 2],
            },
            {"sha256": "02", "strength": 1.0, "start": 0.0, "end": 1.0},
        ],
        "redux_sha256": [{"sha256": "03", "scale": 0.25, "model": "folder"}],
    }
    line = command_line(record)
    assert line == (
        "mlx-imagegen generate x --control FILE1,net-a,strength=0.7,kind=canny,end=0.8 --control FILE2 "
        "--redux FILE1:0.25:folder"
    )
    parser = Parser()
    generate.flags(parser)
    _, (request,) = read_requests(parser.parse_args(shlex.split(line)[2:]))
    first, second = open_fields(request["control"])
    assert first == {"picture": "FILE1", "model": "net-a", "strength": 0.7, "kind": "canny", "end": 0.8}
    assert second == {"picture": "FILE2"}
    assert request["redux"] == [{"picture": "FILE1", "scale": "0.25", "model": "folder"}]
    assert "    redux=[{'picture': 'FILE1', 'scale': 0.25, 'model': 'folder'}],\n" in python_code(record)


def open_fields(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbers = ("strength", "start", "end")
    return [{name: float(value) if name in numbers else value for name, value in each.items()} for each in entries]


def test_pictures_that_are_not_in_the_record_are_named(tmp_path: Path) -> None:
    record = {"prompt": "x", "image_sha256": "0123", "references_sha256": ["4", "5"], "strength": 0.5}
    assert command_line(record) == "mlx-imagegen generate x --image FILE --strength 0.5 --references FILE1 FILE2"
    assert "    references=['FILE1', 'FILE2'],\n" in python_code(record)
