"""The scripts of examples/ and the notebook run on the demo models and do what they say."""

import importlib.util
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.hub.manifest import data_folder

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NIGHT = data_folder("weights") / "demo/loras/flux-night.safetensors"
FOX, HEN = "a small red circle on a white background", "a large blue square on a white background"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_script_and_notebook_is_listed() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in [*(f"{name}.py" for name in SCRIPTS), *(path.name for path in NOTEBOOKS)]:
        assert f"[{name}]({name})" in text, name


def test_the_shown_commands_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of each script's docstring and of the README, as far as the flags go."""
    pages = [FOLDER / "README.md", *(FOLDER / f"{name}.py" for name in SCRIPTS)]
    commands = [line for page in pages for line in re.findall(r"python examples/\w+\.py.*", page.read_text())]
    assert len(commands) >= 2 * len(SCRIPTS)
    for command in commands:
        _, path, *arguments = shlex.split(command)
        with pytest.raises(SystemExit) as ended:
            script(Path(path).stem).main([*arguments, "--no-such-flag"])
        assert ended.value.code == 2 and capsys.readouterr().err.endswith("unrecognized arguments: --no-such-flag\n")


def test_the_batch_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text(f"{FOX}\n\n{HEN}\n")
    batch = script("batch_resume")
    batch.main(["prompts.txt", "out", "--seeds", "1", "2"])
    pictures = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert sorted(pictures) == ["001-1.png", "001-2.png", "002-1.png", "002-2.png"]
    assert "4 of 4 pictures" in capsys.readouterr().out

    Path("out/002-1.png").unlink()
    Path("prompts.txt").write_text(f"{HEN}\n{HEN}\n")  # the first one has changed
    batch.main(["prompts.txt", "out", "--seeds", "1", "2"])
    assert "3 of 4 pictures" in capsys.readouterr().out
    assert Path("out/002-2.png").read_bytes() == pictures["002-2.png"]
    for name in ("001-1.png", "002-1.png"):
        assert json.loads(Image.open(Path("out", name)).text["mlx_imagegen"])["prompt"] == HEN  # type: ignore[attr-defined]
    batch.main(["prompts.txt", "out", "--seeds", "1", "2"])
    assert "0 of 4 pictures" in capsys.readouterr().out


def test_q8_is_closer_than_q4(capsys: pytest.CaptureFixture[str]) -> None:
    script("q6_against_q8").main([FOX, HEN, "--quants", "q8", "q4", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    decibels = {line.split()[0]: float(line.split(" dB")[0].split()[-1]) for line in lines if " dB" in line}
    assert [line.split()[0] for line in lines] == ["none", "q8", "q4"]
    assert decibels["q8"] > decibels["q4"] + 5 and decibels["q4"] > 20
    assert len(list(Path("quants").glob("*.png"))) == 6


def test_the_sweep_grows_dark(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's LoRA makes backgrounds black."""
    script("lora_sweep").main([FOX, str(NIGHT), "--scales", "0", "1"])
    without, styled = np.split(np.asarray(Image.open("sweep.png"), np.float32), 2, axis=1)
    assert without[:8, :8].mean() > 200 and styled[:8, :8].mean() < 60
    assert np.array_equal(without, np.asarray(load("flux-demo").generate(FOX, seed=1).image, np.float32))


def test_the_loop_moves_towards_the_prompt() -> None:
    Image.new("RGB", (128, 128), "white").save("photo.jpg")
    asked = ["photo.jpg", "a large blue square on a black background", "--rounds", "3", "--strength", "0.7"]
    script("image_loop").main(asked)
    with Image.open("loop.gif") as frames:
        assert frames.n_frames == 3  # type: ignore[attr-defined]
        means = []
        for index in range(3):
            frames.seek(index)
            means.append(np.asarray(frames.convert("RGB"), np.float32).mean())
    assert means[2] < means[0] - 5


@pytest.fixture
def address() -> Iterator[str]:
    service = script("service").Service(load("flux-demo"), Path(), 0)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}/generate"
    service.shutdown()
    thread.join()
    service.server_close()


def post(address: str, **fields: object) -> bytes:
    with urlopen(address, json.dumps(fields).encode(), timeout=60) as answer:
        return bytes(answer.read())


def test_the_service_answers_many_at_once(address: str) -> None:
    answers: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: answers.update({seed: post(address, prompt=FOX, seed=seed, steps=2)}))  # type: ignore[misc]
        for seed in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saved = {json.loads(Image.open(path).text["mlx_imagegen"])["seed"]: path for path in Path().glob("*.png")}  # type: ignore[attr-defined]
    assert {seed: saved[seed].read_bytes() for seed in saved} == answers and len(answers) == 3
    alone = load("flux-demo").generate(FOX, seed=2, steps=2).image
    assert np.array_equal(np.asarray(Image.open(saved[2])), np.asarray(alone))
    with urlopen(address, timeout=60) as answer:
        assert json.loads(answer.read()) == {"model": "flux-demo"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": FOX, "width": 100}, "width 100"),
        ({"prompt": FOX, "image": "/etc/hostname"}, "image: not among"),
        ({"seed": 1}, 'a JSON object with a "prompt"'),
    ],
)
def test_the_service_refuses_in_one_line(address: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(HTTPError) as refused:
        post(address, **fields)
    assert refused.value.code == 400 and message in json.loads(refused.value.read())["error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_is_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    namespace: dict[str, object] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    assert isinstance(namespace["sheet"], Image.Image) and len(namespace["previews"]) == 4  # type: ignore[arg-type]
