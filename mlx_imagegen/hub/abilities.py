"""What each model can be asked besides a prompt, by its manifest and its family.

Out: the pictures that a model takes, and which models take one that another does not.
Must not know: requests, tensors.
"""

from ..families import family_spec
from .manifest import Manifest, manifests


def abilities(manifest: Manifest) -> list[str]:
    """The parameters by which the model can be given pictures, and layers, if it makes some."""
    layered = "layers" in manifest.extras.get("takes", ())
    starts = "image" in family_spec(manifest.family).capabilities and not layered
    follows = "control" in manifest.extras.get("needs", ()) or bool(control_networks(manifest))
    has = {"image": starts, "mask": starts, "references": manifest.edits, "control": follows, "layers": layered}
    return [name for name, here in has.items() if here]


def control_networks(manifest: Manifest) -> list[str]:
    """The control networks that go with a model."""
    if manifest.edits or "needs" in manifest.extras:  # they are shown pictures of their own
        return []
    return [name for name, network in manifests("control network").items() if manifest.family in network.families]


def able(ability: str, manifest: Manifest) -> str:
    """Up to three published models that have an ability, the same family's first, for refusals."""
    others = [other for other in manifests().values() if not other.folder and ability in abilities(other)]
    others.sort(key=lambda other: other.family != manifest.family)
    names = [other.name for other in others][:3]
    return ", ".join([*names[:-2], " and ".join(names[-2:])]) if names else "no model of this version"
