"""A model family of another package: ColourField, which draws colours for words. No file of the library knows it.

`SPEC` is all that the library needs; manifests/ holds the manifest, `draw` makes a checkpoint.
"""

from pathlib import Path

from mlx_imagegen.families import FamilySpec, TokenRoles
from mlx_imagegen.loading.folder import ModelFolder

CLASS = "ColourFieldPipeline"


def recognize(folder: ModelFolder) -> str | None:
    return "colour-field" if folder.pipeline == CLASS else None


SPEC = FamilySpec(
    name="colour_field",
    title="ColourField",
    opens="tests.made_up.family:ColourField",
    recognize=recognize,
    classes=(CLASS,),
    roles=TokenRoles(joint=("blocks.*",), queries=("*.to_q",)),
    components=("transformer",),
    lora_sign=r"colour_mixer",
    manifests=Path(__file__).parent / "manifests",
)
