"""Memory that is cheap to fork: tests' processes have hundreds of megabytes of layers, and many are forked.

fork(2) copies an entry of the page table for each 4 KiB, or for each 2 MiB where they are a huge page: for
800 MB that is 5 ms instead of 60. What a test module has made is given back when its tests have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_MADV_COLLAPSE = 25  # asm-generic/mman-common.h, Linux 6.1
_SIZE = 2 << 20  # bytes of a huge page


def give_back() -> None:
    """Have libc return what is free to the kernel: it keeps what each thread has had at most."""
    with contextlib.suppress(AttributeError):  # another libc than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def collapse() -> None:
    """Have the kernel make huge pages of this process's memory; one that cannot leaves it as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, rights, _, device, _, *name = line.split(maxsplit=5)
        start, end = (int(place, 16) for place in places.split("-"))
        start, end = start + -start % _SIZE, end - end % _SIZE
        is_plain = rights == "rw-p" and device == "00:00" and name in ([], ["[heap]"])
        if is_plain and start < end:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)
