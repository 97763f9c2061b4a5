"""Answers of remote calls, with errors as they were raised and not as Ray wraps them."""

from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from privacy.errors import UmbraError


def answer(reference: Any) -> Any:
    """Wait for one reference, or a list of them, and return what it holds.

    Ray's own text of a failed call holds the worker's stack trace, which may hold private values.
    Errors meant for users arrive as they are; of any other only its type is told.

    Raises:
        UmbraError: as the worker raised it, or with the type of what went wrong there.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UmbraError):
            raise cause from None
        raise UmbraError(
            f"a worker failed with {type(cause).__name__}; its text may hold private values and "
            "stays in Ray's own logs"
        ) from None
    except RayActorError as error:
        raise UmbraError(
            f"a worker process died ({type(error).__name__}): out of memory, or killed; "
            "`umbra resume` goes on from what is durable"
        ) from None
