"""The model card of a folder that `quantize` has written: base model, licence and recipe, as the hub reads them.

In: the record of the conversion. Out: README.md's text. It names no place of this machine.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ..hub.manifest import manifests

CARD = "README.md"
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}  # by the hub's names; others are "other"


def card(record: Mapping[str, Any]) -> str:
    licence, source = str(record["licence"]), str(record["source"])
    title = manifests()[record["manifest"]].title if record["manifest"] in manifests() else record["manifest"]
    recipe = PurePath(str(record["recipe"])).name
    base = None if PurePath(source).is_absolute() else source
    hub_licence = HUB_LICENCES.get(licence, "other")
    front = [
        f"license: {hub_licence}",
        *([f"license_name: {licence}"] if hub_licence == "other" else []),
        *([f"base_model: {base}", "base_model_relation: quantized"] if base else []),
        "library_name: mlx-imagegen",
        "pipeline_tag: text-to-image",
        "tags: [mlx, quantized]",
    ]
    revision = f" at revision `{record['revision']}`" if record["revision"] else ""
    bits = ", ".join(f"{name} {bits:.2f} bits a weight" for name, bits in record["bits_per_weight"].items())
    lines = [
        f"# {title}, {recipe}",
        "",
        f"- Base model: {f'[{base}](https://huggingface.co/{base}){revision}' if base else 'a local folder or file'}",
        f"- Licence: {licence}, the base model's; its terms hold for this copy too",
        f"- Recipe: {recipe} ({bits})",
        *(f"- LoRA merged: {PurePath(str(lora['file'])).name} at {lora['scale']:g}" for lora in record["lora"]),
        f"- Written by {record['tool']}; `mlx_imagegen.json` has the details",
        "",
        "```",
        'mlx-imagegen "a prompt" --model ./THIS_FOLDER',
        "```",
    ]
    return "\n".join(["---", *front, "---", "", *lines, ""])
