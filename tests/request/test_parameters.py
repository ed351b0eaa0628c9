"""The table of parameters: what is read from it, and the names that users bring from other programs."""

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.commands.flags import FORMS
from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.request.job import resolve
from mlx_imagegen.request.kinds import CALLBACK, NUMBER, NUMBERS, SWITCH, WHOLE_NUMBER
from mlx_imagegen.request.parameters import ALIASES, BY_NAME, PARAMETERS, limits

PICTURE = Image.new("RGB", (64, 64))


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, mlx_imagegen.request.signatures; print([m for m in ('mlx', 'numpy', 'PIL') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_names_are_unambiguous() -> None:
    names = [name for row in PARAMETERS for name in (row.name, *row.aliases)]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_rows_refer_to_rows() -> None:
    assert {name for row in PARAMETERS for name in row.replaces} <= set(BY_NAME)


def test_every_kind_has_a_form_on_the_command_line() -> None:
    assert {row.kind for row in PARAMETERS} - {CALLBACK} == set(FORMS)


def test_kinds() -> None:
    assert NUMBER.accepts(np.float32(1)) and not NUMBER.accepts(True) and not NUMBER.accepts("1")
    assert WHOLE_NUMBER.accepts(1) and not WHOLE_NUMBER.accepts(1.0) and not WHOLE_NUMBER.accepts(False)
    assert SWITCH.accepts(False) and not SWITCH.accepts(0)
    assert NUMBERS.accepts(np.zeros(3)) and NUMBERS.accepts((1, 2)) and not NUMBERS.accepts("12")


@pytest.mark.parametrize(
    ("manifest", "parameters"),
    [
        ("flux-dev", {"image": PICTURE, "true_cfg": 2, "negative_prompt": "hens", "noise": np.zeros((1, 16, 8, 8))}),
        ("hidream-o1", {"references": [PICTURE], "layout": [[0, 1, 0, 1]], "keep_original_aspect": True}),
        ("hidream-o1-dev", {"steps": 2, "step_noise": [np.zeros((1, 3, 8, 8))] * 2, "blend_seams": "adaptive"}),
    ],
)
def test_a_record_holds_what_the_table_says(manifest: str, parameters: dict[str, Any]) -> None:
    found = manifests()[manifest]
    record = resolve(found, 32, "a fox", 1, **parameters)[0].record(found.guidance)
    keys = {row.record_key for row in PARAMETERS if row.recorded}
    assert record.keys() <= keys and {BY_NAME[name].record_key for name in parameters} <= record.keys()


@pytest.mark.parametrize("name", ["steps", "guidance", "true_cfg", "shift", "noise_clip"])
def test_limits_are_those_of_the_table(name: str) -> None:
    model = manifests()["flux-dev" if name == "true_cfg" else "hidream-o1-dev"]
    low, high = limits(name)
    for value in (low, high):
        if name != "guidance" or value <= 1:  # more of it would spoil this model's pictures
            resolve(model, 32, "a fox", 1, **{name: value})
    with pytest.raises(RequestError, match=f"{name} .* from {low:g} to {high:g}"):
        resolve(model, 32, "a fox", 1, **{name: type(high)(high + 1)})


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("num_inference_steps", "steps"),
        ("guidance_scale", "guidance"),
        ("num_images", "count"),
        ("num_images_per_prompt", "count"),
        ("negative", "negative_prompt"),
        ("true_cfg_scale", "true_cfg"),
        ("stepss", "steps"),
    ],
)
def test_the_names_of_other_programs_are_answered_with_ours(alias: str, name: str) -> None:
    with pytest.raises(RequestError, match=f"no parameter '{alias}'; did you mean {name}\\?"):
        resolve(manifests()["flux-dev"], 16, "a fox", 1, **{alias: 4})


def test_what_only_load_takes_is_suggested_where_it_is_taken() -> None:
    from mlx_imagegen import generate

    assert ALIASES["quantize"] == "quant"
    with pytest.raises(RequestError, match="no parameter 'quantize'; did you mean quant"):
        generate("a fox", quantize=8)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="no parameter 'quantize'; known: .* and what load.. takes"):
        resolve(manifests()["flux-dev"], 16, "a fox", 1, quantize=8)
