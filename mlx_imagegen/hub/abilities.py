"""What each model can be asked besides a prompt, by its manifest and its family.

Out: the pictures that a model takes, the networks that run next to it, and which models take what another does not.
Must not know: requests, tensors.
"""

from ..families import family_spec
from .manifest import Manifest, manifests

# What runs next to a model: the kind of its manifest -> the parameter that names it; None where the manifest says it.
NETWORK_KINDS = {"control network": "control", "image adapter": None, "prompt upsampler": "upsample"}


def abilities(manifest: Manifest) -> list[str]:
    """The parameters by which the model can be given pictures, and layers, if it makes some."""
    layered = "layers" in manifest.extras.get("takes", ())
    starts = "image" in family_spec(manifest.family).capabilities and not layered
    follows = "control" in manifest.extras.get("needs", ()) or bool(networks_of(manifest, "control"))
    has = {"image": starts, "mask": starts, "references": manifest.edits, "control": follows, "layers": layered}
    adapters = dict.fromkeys(adapter.extras["parameter"] for adapter in manifests("image adapter").values())
    has |= {parameter: bool(networks_of(manifest, parameter)) for parameter in adapters}
    return [name for name, here in has.items() if here]


def networks(parameter: str) -> dict[str, Manifest]:
    """What a parameter may name, whatever the model."""
    known = (network for kind in NETWORK_KINDS for network in manifests(kind).values())
    return {network.name: network for network in known if parameter_of(network) == parameter}


def parameter_of(network: Manifest) -> str:
    """That names it."""
    return NETWORK_KINDS[network.kind] or str(network.extras["parameter"])


def networks_of(manifest: Manifest, parameter: str) -> list[str]:
    """Those that go with a model."""
    if parameter == "control" and _is_shown_pictures(manifest):
        return []
    if parameter != "control" and manifest.folder:  # a demo has other widths than what is published
        return []
    return [name for name, network in networks(parameter).items() if manifest.family in network.families]


def _is_shown_pictures(manifest: Manifest) -> bool:
    """Whether the model cannot do without pictures of its own, or begins with one."""
    own = manifest.extras
    return "needs" in own or own.get("image_is_reference", False) or "layers" in own.get("takes", ())


def able(ability: str, manifest: Manifest) -> str:
    """Up to three published models that have an ability, the same family's first, for refusals."""
    others = [other for other in manifests().values() if not other.folder and ability in abilities(other)]
    others.sort(key=lambda other: other.family != manifest.family)
    names = [other.name for other in others][:3]
    return ", ".join([*names[:-2], " and ".join(names[-2:])]) if names else "no model of this version"
