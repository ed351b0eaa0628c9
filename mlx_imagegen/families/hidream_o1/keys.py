"""HiDream-O1 as a single file: the repository's own names, the language model's head left out by some."""

from ...loading.single_file import SingleFile, Tensors, has


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """The three variants are alike in every name and number: only the file's name tells."""
    return "hidream-o1-dev-2604" if "2604" in name else "hidream-o1-dev" if "dev" in name else "hidream-o1"


SINGLE_FILES = (
    SingleFile(
        "transformer",
        "HiDream-O1",
        has("model.t_embedder1.mlp.0.weight", "model.x_embedder.proj1.weight"),
        prefixes=("", "model.diffusion_model."),
        manifest=nearest_manifest,
        place=".",
    ),
)
