"""Pictures to change, and what they are to a model that edits and to one that does not."""

from types import SimpleNamespace
from typing import cast

import pytest

from mlx_imagegen.errors import RequestError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.serving.catalogue import Catalogue, Entry
from mlx_imagegen.serving.edits import edit_fields

from .conftest import png

EDITS, DRAWS = "qwen-image-edit", "flux-dev"


@pytest.fixture
def catalogue() -> Catalogue:
    """As if both models were here."""
    return cast(Catalogue, SimpleNamespace(model=lambda name: Entry(name, name, manifests()[name])))


def test_a_model_that_edits_is_shown_the_pictures(catalogue: Catalogue) -> None:
    fields = edit_fields({"model": EDITS, "image": [png(), png()]}, catalogue)
    assert fields.keys() == {"model", "references"} and len(fields["references"]) == 2


def test_any_other_model_starts_from_the_one_picture(catalogue: Catalogue) -> None:
    assert edit_fields({"model": DRAWS, "image": png()}, catalogue)["image"].size == (48, 32)
    with pytest.raises(RequestError, match="2 pictures are given"):
        edit_fields({"model": DRAWS, "image": [png(), png()]}, catalogue)


def test_a_mask_belongs_to_the_first_picture_and_is_drawn_from_scratch(catalogue: Catalogue) -> None:
    for model, pictures, references in ((DRAWS, 1, 0), (EDITS, 1, 0), (EDITS, 2, 2)):
        asked = {"model": model, "image": [png()] * pictures, "mask": png("white")}
        fields = edit_fields(asked, catalogue)
        assert fields["strength"] == 1.0 and fields["mask"].mode == "L"
        assert fields["image"].size == (48, 32) and len(fields.get("references", ())) == references
        assert edit_fields(asked | {"strength": 0.5}, catalogue)["strength"] == 0.5


def test_no_picture_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(RequestError, match="image is missing"):
        edit_fields({"model": DRAWS, "prompt": "x"}, catalogue)
