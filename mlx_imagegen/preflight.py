"""What can be refused before a model is downloaded or opened: by its manifest and its published shapes.

In: a model's name and how it is to be opened; the machines that share it, where they are several. Out: errors.
Must not know: pipelines, files of a model that is here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .families import family_spec, open_family
from .families.controls import check_named
from .hub.download import identify, pending_download
from .hub.manifest import Manifest, Model
from .hub.networks import network_to_fetch
from .hub.tensor_shapes import has_tensor_shapes, shape_only_folder
from .loading.transforms import WeightTransforms
from .lora.match import Lora, match_loras, module_names
from .packing.recipes import read_recipe
from .planning.fitting import check_before_download
from .planning.hosts import check_hosts_before_download
from .request.job import Job, resolve
from .request.sizes import multiple_of


def refuse_before_download(
    found: Model, quant: str | None, loras: Sequence[Lora] = (), partial: bool = False, memories: Sequence[int] = ()
) -> None:
    """Raises for weights that this machine cannot hold and for LoRAs that do not fit them, while nothing has been
    downloaded for them. `memories`: bytes that each of several machines gives over which layers can be shared out."""
    manifest = pending_download(found)
    if manifest is None:
        return
    transforms = read_recipe(quant, manifest.family).applied_to(WeightTransforms()) if quant else WeightTransforms()
    if memories:
        check_hosts_before_download(manifest, transforms, memories)
    else:
        check_before_download(manifest, transforms)
    if loras and has_tensor_shapes(manifest):
        with shape_only_folder(manifest) as folder:
            known = module_names(open_family(manifest, folder, WeightTransforms()))
        match_loras(loras, known, family_spec(manifest.family).title, partial)


def resolve_before_opening(manifest: Manifest, lora: Any, /, *asked: Any, **parameters: Any) -> list[Job]:
    """`resolve` and `check_networks`, for a model that is not open, before it is downloaded. `lora`: as `load` takes
    it; one may make a model follow pictures itself."""
    jobs = resolve(manifest, multiple_of(manifest), *asked, **parameters)
    check_networks(manifest, jobs, lora)
    return jobs


def check_networks(manifest: Manifest, jobs: Sequence[Job], lora: Any) -> None:
    """Raises for networks that cannot be had, that go with another model, or that are not named."""
    networks = {control.model for job in jobs for control in job.controls}
    if not lora and "control" not in manifest.extras.get("needs", ()):
        check_named(networks, family_spec(manifest.family).title)
    named = {("control", network) for network in networks if network}
    named |= {(image.adapter.parameter, image.adapter.name) for job in jobs for image in job.prompt.images}
    for parameter, name in sorted(named):
        network_to_fetch(name, manifest, parameter)


def manifest_before_opening(model: str | Path) -> Manifest | None:
    """The manifest of a model that may have to be downloaded first: it alone decides what a request may hold. None for
    a folder, whose own files decide."""
    found = identify(str(model))
    return None if found.folder and not found.manifest.bundled else found.manifest
