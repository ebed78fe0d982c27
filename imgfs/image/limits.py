"""Every bound on an image, and on what is imported with it, in one table.

Input beyond a bound raises InvalidImage; an imported index or tree is then not used.

| input                     | bound                                                                         |
|---------------------------|-------------------------------------------------------------------------------|
| layers of an image        | 500: overlayfs stacks no more; about 150 KiB of memory and 5 files for each   |
| a published index or tree | unpacks to 100 times its size and 1 MiB (`layer.limits`), and to half of the  |
|                           | store's limit; is not fetched if it says more                                 |
| a table of contents       | 256 MiB as it is fetched, and as it unpacks (`layer.limits`)                  |
| a zTOC                    | 256 MiB (`layer.limits`)                                                      |
| a profile                 | `content.profile.MAX_JSON`                                                    |
| all indexes and trees     | count in the store's limit, which leaves an eighth to layers' bytes at least  |
"""

from __future__ import annotations

from imgfs.layer.limits import DATABASE_LIMIT, DATABASE_MORE, DATABASE_RATIO

LAYERS_LIMIT = 500  # of an image: OVL_MAX_STACK (linux, fs/overlayfs/params.h)


def largest_unpacked(packed: int) -> int:
    """Return the bytes that a published index or tree of `packed` bytes may unpack to."""
    return min(DATABASE_LIMIT, DATABASE_RATIO * packed + DATABASE_MORE)
