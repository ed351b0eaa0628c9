"""Names: every name a LoRA may call a module by, and real files' keys, all of them used.

tests/data/lora/names.json and formats.json are tables of public formats at full size: a name with {i} stands for
`count` blocks. They were written without this library.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.families import family_spec
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.names import runs
from mlx_imagegen.loading.weights import open_weights
from mlx_imagegen.lora.file import LoraFile
from mlx_imagegen.lora.match import Lora, Match, ModuleNames, match_loras
from tests.lora.test_merge import DATA, known

NAMES: dict[str, dict[str, Any]] = json.loads((DATA / "names.json").read_text())
FORMATS: dict[str, dict[str, Any]] = json.loads((DATA / "formats.json").read_text())
FAMILIES = {"flux": "flux1", "qwen": "qwen_image", "hidream": "hidream_o1"}
FACTS = Path(__file__).parents[3] / "shared" / "facts" / "lora"
NOWHERE = Path("/nowhere.safetensors")


def expanded(patterns: dict[str, Any]) -> dict[str, Any]:
    """{i} filled in, in names and in targets' names."""
    out = {}
    for pattern, entry in patterns.items():
        for i in range(entry.get("count", 1)):
            number = str(i) if "count" in entry else "{i}"
            filled = {key: value for key, value in entry.items() if key != "count"}
            if "targets" in entry:
                filled["targets"] = [[name.replace("{i}", number), *rows] for name, *rows in entry["targets"]]
            out[pattern.replace("{i}", number)] = filled
    return out


def full_size(family: str) -> ModuleNames:
    """The transformer at its published size, from its own names among the table's."""
    modules = {
        name: entry["shape"] for name, entry in expanded(NAMES[family]).items() if entry["targets"][0][0] == name
    }
    tensors = {
        f"{name}.weight": Tensor(NOWHERE, f"{name}.weight", "BF16", tuple(shape), 0, 0)
        for name, shape in modules.items()
    }
    weights = open_weights("transformer", Checkpoint(tensors, [], NOWHERE), [], unused=("",))
    return known([weights], family)[0]


def led_to(vocabulary: ModuleNames, name: str) -> dict[str, Any]:
    """A name's entry as names.json has it."""
    targets, row = [], 0
    for target in vocabulary.names[name]:
        height, columns = vocabulary.shapes[f"{target.name}.weight"]
        (run, *_) = runs(target, 0, height, height)
        first = row if target.swap_halves else run.start
        targets.append([target.name, first, first + height])
        row += height
    entry = {"shape": [row, columns], "targets": targets}
    return entry | {"swap_halves": True} if vocabulary.names[name][0].swap_halves else entry


@pytest.mark.parametrize("family", NAMES)
def test_every_name_of_every_module(family: str) -> None:
    vocabulary = full_size(family)
    ours = {name: led_to(vocabulary, name) for name in vocabulary.names if "processor" not in name}
    assert ours == expanded(NAMES[family])


@pytest.mark.skipif(not FACTS.is_dir(), reason="the tables that names.json was made from are not next to this checkout")
@pytest.mark.parametrize("short", FAMILIES)
def test_the_stored_tables_are_the_published_ones(short: str) -> None:
    published = json.loads((FACTS / f"map_{short}.json").read_text())["aliases"]
    without = {name: {k: v for k, v in entry.items() if k != "swap_halves" or v} for name, entry in published.items()}
    assert expanded(NAMES[FAMILIES[short]]) == without
    for path in FACTS.glob(f"keys_{short}_*.json"):
        assert expanded(FORMATS[path.stem.removeprefix("keys_")]) == json.loads(path.read_text())


def matched(name: str) -> Match:
    family = FAMILIES[name.partition("_")[0]]
    keys = expanded(FORMATS[name])
    tensors = {key: Tensor(NOWHERE, key, "BF16", tuple(entry["shape"]), 0, 0) for key, entry in keys.items()}
    file = LoraFile.of(Checkpoint(tensors, [], NOWHERE), {}, name)
    (match,) = match_loras([Lora(file)], [full_size(family)], family_spec(family).title)
    return match


@pytest.mark.parametrize("name", FORMATS)
def test_every_key_of_every_format_is_used(name: str) -> None:
    match = matched(name)
    assert not match.unmatched and not match.misshapen and not match.lora.file.unknown_keys
    used = {tensor.name for entry in match.lora.file.entries.values() for tensor in entry.parts.values()}
    assert used == set(expanded(FORMATS[name]))
    assert len(match.matched) == len(match.lora.file.entries)
    changed = {change.entry.name for changes in match.changes.values() for change in changes}
    assert changed == set(match.lora.file.entries)


def test_lightning_uses_all_its_tensors() -> None:
    match = matched("qwen_lightning")
    assert len(match.matched) == 720
    assert sum(len(entry.parts) for entry in match.lora.file.entries.values()) == 2160
    assert {entry.rank for entry in match.lora.file.entries.values()} == {64}


@pytest.mark.parametrize(
    ("name", "format", "family"),
    [
        ("flux_aitoolkit", "diffusers PEFT (also ai-toolkit for FLUX.1)", "FLUX.1"),
        ("flux_comfy", "ComfyUI", "FLUX.1"),
        ("flux_kohya", "kohya sd-scripts", "FLUX.1"),
        ("flux_kohya_all_in", "kohya sd-scripts", "FLUX.1"),
        ("flux_peft_default", "diffusers PEFT (also ai-toolkit for FLUX.1)", "FLUX.1"),
        ("flux_xlabs", "XLabs", "FLUX.1"),
        ("hidream_aitoolkit", "ai-toolkit", "HiDream-O1-Image"),
        ("hidream_musubi", "musubi-tuner", "HiDream-O1-Image"),
        ("qwen_aitoolkit", "ai-toolkit", "Qwen-Image"),
        ("qwen_diffsynth", "DiffSynth", "Qwen-Image"),
        ("qwen_lightning", "bare names with down and up (lightx2v Lightning)", "Qwen-Image"),
        ("qwen_musubi", "musubi-tuner", "Qwen-Image"),
        ("qwen_peft", "diffusers PEFT (also ai-toolkit for FLUX.1)", "Qwen-Image"),
    ],
)
def test_who_wrote_it_and_for_which_model(name: str, format: str, family: str) -> None:
    file = matched(name).lora.file
    assert (file.format, file.family) == (format, family)
