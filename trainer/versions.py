"""Which versions go together on a TPU: a wrong pair is refused before it crashes or computes wrong.

What JAX needs is read from its own metadata, so that a newer JAX brings newer answers.
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from packaging.requirements import Requirement

from trainer.errors import UsageError

# Tested together; the same as in constraints.txt, which an installed trainer does not have.
PINS = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1", "keras": "3.15.1"}

# Keras 3.15 is the oldest that was tried: `trainer.models` walks its layers by a private method.
_OWN_NEEDS = ("python>=3.11", "keras>=3.15")


def mismatches(installed: Mapping[str, str], needs: Sequence[str]) -> list[str]:
    """Lists what does not go together.

    Args:
        installed: version of each package that is installed, and of `python`.
        needs: requirements as in packaging metadata, such as `libtpu==0.0.42.*`; those of packages
            that are looked for elsewhere carry a marker and are left out by the caller.

    Returns:
        A text for each requirement that is not met.
    """
    found = []
    for requirement in map(Requirement, needs):
        version = installed.get(requirement.name)
        if version is None:
            found.append(f"{requirement} is needed and not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} is needed, not {version}")
    return found


def check_tpu() -> None:
    """Raises if Python, JAX, libtpu and Keras do not go together.

    Raises:
        UsageError: it names what is wrong and the versions that were tested together.
    """
    installed = {"python": platform.python_version()}
    for name in PINS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    wrong = mismatches(installed, [*_OWN_NEEDS, *jax_needs()])
    if wrong:
        pins = " ".join(f"{name}=={version}" for name, version in PINS.items())
        raise UsageError(
            f"versions that do not go together: {'; '.join(wrong)}. These do, with Python 3.11: "
            f"{pins} (pip install '.[tpu]' --constraint constraints.txt)"
        )


def jax_needs() -> list[str]:
    """Returns what the installed JAX needs of jaxlib and libtpu on a TPU."""
    needs = []
    for text in importlib.metadata.requires("jax") or []:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": "tpu"})
        if applies and requirement.name in ("jaxlib", "libtpu"):
            requirement.marker = None
            needs.append(str(requirement))
    return needs
