"""An error meant for users, carried past Ray Train, which would turn it into a stack trace."""

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
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


_SECONDS = 1.0  # between two words of a worker: steps may take milliseconds, a word takes one


class ProgressBoard:
    """Holds the newest count of every part: steps of a phase, images of a shard; all public.

    It is only for people to see: a cluster that cannot be asked stops nobody.
    """

    def __init__(self) -> None:
        self._board = Noticeboard()
        self._told = -math.inf

    def tell(self, part: str, done: int, total: int) -> None:
        """Tell that `done` of a part's `total` units are done; not all that is told is noted."""
        if done < total and monotonic() - self._told < _SECONDS:
            return
        self._told = monotonic()
        with suppress(UmbraError):
            self._board.put(part, done)

    def forget(self, part: str) -> None:
        """Take a part away."""
        with suppress(UmbraError):
            self._board.remove(part)

    def read(self) -> dict[str, int]:
        """Return the counts by part."""
        with suppress(UmbraError):
            return self._board.everything()
        return {}

    def clear(self) -> None:
        """Leave nothing in the cluster."""
        with suppress(UmbraError):
            self._board.clear()


_FIRST = "first"


class Refusal:
    """The error that ended a training, for all its workers; it is final.

    What cannot be told or asked is an `UmbraError`, too: silence would pass for success.
    """

    def __init__(self) -> None:
        self._board = Noticeboard()

    def tell(self, error: UmbraError) -> None:
        """Note an error; the first counts, for those that follow are mostly its consequences."""
        self._board.put_first(_FIRST, error)

    def read(self) -> UmbraError | None:
        """Return the first error, if there was one."""
        told = self._board.get(_FIRST)
        assert told is None or isinstance(told, UmbraError)  # noqa: S101
        return told

    def clear(self) -> None:
        """Leave nothing in the cluster."""
        with suppress(UmbraError):
            self._board.clear()
