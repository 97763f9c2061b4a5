"""Words that the processes of a run leave for each other on a cluster.

They are kept in the cluster's own table (that of Ray's GCS): an actor to hold them would be one
more process to start and to keep, and could be lost with its machine. Nothing private belongs
here: whoever reaches the cluster can read it.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from ray.exceptions import RayError
from ray.experimental import internal_kv

from privacy.errors import UmbraError

_NAMESPACE = "umbra"


class Noticeboard:
    """A table of values by key, the same in every process that this object is sent to.

    Every method raises `UmbraError` if the cluster cannot be asked.
    """

    def __init__(self) -> None:
        self._prefix = f"{uuid4().hex}/"

    def put(self, key: str, value: Any) -> None:
        """Write a value, in place of an older one."""
        self._put(key, value, overwrite=True)

    def put_first(self, key: str, value: Any) -> None:
        """Write a value unless there is one."""
        self._put(key, value, overwrite=False)

    def get(self, key: str) -> Any:
        """Return the value, or None if there is none."""
        with _in_words():
            value = internal_kv._internal_kv_get(self._prefix + key, namespace=_NAMESPACE)
        return None if value is None else pickle.loads(value)  # noqa: S301 - put here by us

    def everything(self) -> dict[str, Any]:
        """Return all values by key; one that is taken away meanwhile may be missing."""
        with _in_words():
            listed = internal_kv._internal_kv_list(self._prefix, namespace=_NAMESPACE)
        keys = [key.decode().removeprefix(self._prefix) for key in listed]
        found = {key: self.get(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def remove(self, key: str) -> None:
        """Take a key's value away, if there is one."""
        with _in_words():
            internal_kv._internal_kv_del(self._prefix + key, namespace=_NAMESPACE)

    def clear(self) -> None:
        """Leave nothing of it in the cluster."""
        with _in_words():
            internal_kv._internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)

    def _put(self, key: str, value: Any, overwrite: bool) -> None:
        with _in_words():
            internal_kv._internal_kv_put(
                self._prefix + key, pickle.dumps(value), overwrite, namespace=_NAMESPACE
            )


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        raise UmbraError(
            f"the Ray cluster does not answer ({type(error).__name__}); look whether its head "
            "still runs. `umbra resume` goes on from what is durable"
        ) from None
