"""Memory that a worker frees and takes again, a thousand times a second."""

import ctypes

# <malloc.h>; the first may be no more than 32 MiB in older versions of glibc.
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 * 1024**2
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 1024**3


def keep_freed_memory() -> None:
    """Have this process keep up to 1 GiB of what it frees, where its C library is glibc.

    By default glibc gives feature maps of a megabyte back at once, and the system clears new pages
    for the next: at 8x8 a tenth to a fifth of the time of sampling and of training. A process never
    holds more than it did at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
