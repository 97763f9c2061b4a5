"""The methods by name: ways to fit a generator on private records.

A method is one file and one line in `METHODS`. A name stands for an address that is resolved when
the method is built, so that specs are checked without importing it.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synth.methods.base import Method

METHODS = {
    "diffusion": "synth.methods.diffusion:Diffusion",
    "moments": "synth.methods.moments:Moments",
}
# Those whose model draws images itself: `sampler: direct` is their default, and theirs alone.
DRAWING = frozenset({"moments"})


def method_class(name: str) -> "type[Method]":
    """Return the class of the method called `name`, one of `METHODS`.

    >>> method_class("diffusion").name
    'diffusion'
    """
    found: type[Method] = resolve_name(METHODS[name])
    return found
