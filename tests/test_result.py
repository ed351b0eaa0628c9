"""A result outside the process that made it: in a notebook, and pickled."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import Result, load
from mlx_imagegen.image import METADATA_KEY, read_metadata


@pytest.fixture(scope="module")
def result(flux_folder: Path) -> Result:
    return load(flux_folder).generate("a fox", seed=3, width=48, height=32, steps=1)


def test_a_notebook_shows_the_picture_with_its_record(result: Result, tmp_path: Path) -> None:
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(result.image))
    record = json.loads(shown.text[METADATA_KEY])  # type: ignore[attr-defined]
    assert (record["prompt"], record["seed"], record["steps"]) == ("a fox", 3, 1)
    assert record == read_metadata(result.save(tmp_path / "a.png"))


def test_in_a_session_it_is_one_short_line(result: Result) -> None:
    assert repr(result) == f"Result(48x32, seed 3, {result.report.total_seconds:.3g} s)"


def test_in_a_session_a_pipeline_says_its_model(flux_folder: Path) -> None:
    assert repr(load(flux_folder)) == f"Pipeline('{flux_folder}')"
    assert repr(load("flux-demo", quant="q8")) == "Pipeline('flux-demo', quant='q8')"


def test_another_process_reads_it(result: Result, tmp_path: Path) -> None:
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(result))
    code = (
        "import hashlib, json, pickle; from pathlib import Path;"
        "result = pickle.loads(Path('result.pickle').read_bytes());"
        "picture = hashlib.sha256(result.image.tobytes()).hexdigest();"
        "print(json.dumps([type(result).__name__, picture, result.seed, result.record, result.report.as_dict()]))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    picture = hashlib.sha256(result.image.tobytes()).hexdigest()
    expected = ["Result", picture, 3, result.record, result.report.as_dict()]
    assert json.loads(ran.stdout) == json.loads(json.dumps(expected))
