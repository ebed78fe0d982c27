"""What a layer and its indexes may cost, and what Linux can hold of them: every bound, in one table.

All of it comes from outside. What is beyond a bound raises InvalidImage naming the file and the field; an
index of others is then done without.

An image has 500 layers at most: overlayfs stacks no more. Each takes about 150 KiB of memory and 5 files.
All indexes and trees count in the store's limit, which leaves an eighth to layers' bytes at least.

What Linux, and both drivers, can hold (checked by `tree.builder`, whatever the format and the driver):

| field                   | bound                          | whose                                          |
|-------------------------|--------------------------------|------------------------------------------------|
| a path's component      | 255 bytes                      | NAME_MAX                                       |
| a path, cleaned         | 4,095 bytes                    | PATH_MAX, which counts a NUL                   |
| a link's target         | 4,095 bytes                    | PATH_MAX; EROFS, which reads it from one page  |
| owner, group            | 32 bits; -1 is root's          | uid_t; chown(2), as podman and umoci have it   |
| mode                    | 12 bits; a symlink's is 0777   | symlink(7)                                     |
| device                  | 12 bits major, 20 bits minor   | dev_t                                          |
| size of a file          | 2^63 - 1 bytes                 | off_t                                          |
| modification time       | 64 bits of seconds             | time64_t                                       |
| an attribute's name     | 255 bytes                      | XATTR_NAME_MAX                                 |
| an attribute's value    | 65,536 bytes                   | XATTR_SIZE_MAX                                 |
| a file's attributes     | 65,536 bytes of names, 255 KiB | XATTR_LIST_MAX; EROFS: 16 bits of words        |
| an attribute's prefix   | see `layer.entry`              | xattr(7)                                       |

EROFS holds a little less, so the kernel driver declines the image (`erofs_format.Unsuitable`) and
FUSE, asked next, shows all of it: 2 TiB of files that do not lie at whole blocks of their layer (or have
more than 65,536 pieces, or 1,024 and two for each block stored of them), an attribute of just 65,536 bytes.

What a layer may cost:

| input                   | bound                                                                           |
|-------------------------|---------------------------------------------------------------------------------|
| a compressed layer      | decodes to 100 times its size, or 16 GiB if that is more                        |
| a layer that resumes    | says 128 GiB at most: what is kept of it is marked in memory                    |
| a zstd frame's window   | 2 GiB (`--long=31`); memory: as much of it as the span decodes to               |
| an xz stream            | 1 GiB of memory                                                                 |
| an extension header     | 1 MiB (Go's maxSpecialFileSize), and the same for a sparse map                  |
| components of its paths | 64 looked up for each entry, and 200,000                                        |
| directories implied     | 16 for each entry, and 4,096                                                    |

What is read of a layer is written as it is met: 4 MiB of entries are in memory at the most, and one entry's
records and sparse map, of 1 MiB each as they are stored, up to 64 times that as they are read.

So merging takes time and disk that are linear in the entries, of which each has 512 bytes of the decoded
layer at the least: about 300 bytes of store for an entry, about 150 for a directory that is implied.

What an index of others may cost:

| input                   | bound                                                                           |
|-------------------------|---------------------------------------------------------------------------------|
| a table of contents     | 256 MiB, 2 million entries and chunks of 2 Mi characters;                       |
|                         | memory: 4 times it, and 1.5 KiB for each entry and chunk                        |
| a zTOC                  | 256 MiB, 1,000 vtables; memory: 4 times it, and 2 KiB for each entry            |
| a published SQLite file | unpacks to 100 times its size and 1 MiB, and to 4 GiB at most; windows of 8 MiB |
|                         | in all to half of the store's limit; is not fetched if it says more             |
| its table of tables     | one page, with the rows that it has in a file of imgfs's                        |
| reading that            | 64 steps of SQLite for each of its bytes, and 10 million; 64 MiB for a record   |
| a profile               | `content.profile.MAX_JSON`                                                      |

What a command or an attribute reads in holes, to hash them or to write them as zeros, is 1 TiB in all: a
layer says of a file in a few bytes that it is 2^63 long.

What is guessed of files that are opened (`predict`) is bounded where it is read, and in all by
`predict.wants`.
"""

from __future__ import annotations

from imgfs.errors import InvalidImage

# -- what Linux can hold -----------------------------------------------------------------------------------
NAME_LIMIT = 255  # bytes of one component: NAME_MAX (linux/limits.h)
PATH_LIMIT = 4095  # bytes of a path: PATH_MAX without its NUL
TARGET_LIMIT = PATH_LIMIT  # bytes of a symlink's target
OWNERS = 1 << 32  # uid_t, gid_t
NO_OWNER = OWNERS - 1  # to chown(2) -1 means: leave the owner, which is root where a layer is unpacked
MAJORS, MINORS = 1 << 12, 1 << 20  # dev_t (linux/kdev_t.h)
FILE_LIMIT = (1 << 63) - 1  # bytes of a file: off_t
SECONDS = 1 << 63  # of a time, either way: time64_t
XATTR_NAME_LIMIT = 255  # bytes: XATTR_NAME_MAX (linux/limits.h)
XATTR_VALUE_LIMIT = 1 << 16  # bytes: XATTR_SIZE_MAX
XATTR_LIST_LIMIT = 1 << 16  # bytes of all names, each with its NUL: XATTR_LIST_MAX
XATTRS_LIMIT = (
    4 * 0xFFFF - 12
)  # bytes of all names and values as EROFS packs them, 4 for each and padded to 4

# -- what a layer may cost ---------------------------------------------------------------------------------
# Deflate reaches 1,032 to 1 on zeros, so a sparse image of some GiB is plausible in a small blob; whole
# systems compress less than 100 to 1.
PLAUSIBLE_SIZE = 16 << 30
PLAUSIBLE_RATIO = 100
ZSTD_WINDOW_LIMIT = 1 << 31  # bytes: `zstd --long=31`, the most there is
PACKED_WINDOW_LIMIT = 8 << 20  # bytes: zstd's level 19, and what RFC 8878, 3.1.1.1.2, asks every decoder for
XZ_MEMORY_LIMIT = 1 << 30  # bytes: `xz -9` takes 65 MiB, a dictionary of 768 MiB still goes
EXTENSION_LIMIT = 1 << 20  # bytes of one extension header: Go's maxSpecialFileSize
MAP_LIMIT = (
    1 << 20
)  # bytes of a sparse map stored outside the header: as Go's archive/tar allows for format 1.0
COMPONENTS_EACH, COMPONENTS_MORE = 64, 200_000  # looked up for each entry of a layer, and in all
IMPLIED_EACH, IMPLIED_MORE = 16, 4096  # directories made though no entry describes them

# -- what an index of others may cost ----------------------------------------------------------------------
TOC_LIMIT = 256 << 20  # bytes of a TOC: a million files take about 400 bytes each as eStargz writes them
TOC_ENTRY_LIMIT = 2 << 20  # characters of one entry: a path and a few xattrs
TOC_ENTRIES_LIMIT = 2_000_000  # entries and chunks of one layer
ZTOC_LIMIT = 256 << 20  # bytes: 8,000 checkpoints of 32 KiB, which SOCI makes of 32 GB of layer
VTABLES = 1000  # of a flatbuffer: tables of one shape share theirs, and a zTOC's are of five kinds
DATABASE_LIMIT = 4 << 30  # bytes of a published tree or index, unpacked
DATABASE_RATIO, DATABASE_MORE = (
    100,
    1 << 20,
)  # bytes that one packed byte may become, and that any file may have
RECORD_LIMIT = 64 << 20  # bytes of a row: a million chunks of a file, each an extent
STEPS_EACH, STEPS_MORE = 64, 10_000_000  # of SQLite's virtual machine, for each byte of a file and in all
LAYERS_LIMIT = 500  # of an image: OVL_MAX_STACK (linux, fs/overlayfs/params.h)


def largest_unpacked(packed: int) -> int:
    """Return the bytes that a published index or tree of `packed` bytes may unpack to."""
    return min(DATABASE_LIMIT, DATABASE_RATIO * packed + DATABASE_MORE)


# -- what the holes of its files may cost ------------------------------------------------------------------
HOLES_LIMIT = 1 << 40  # bytes: zeros are hashed in half an hour; the disk of a virtual machine is smaller


class HolesBudget:
    """The bytes of holes that may still be read as zeros."""

    def __init__(self) -> None:
        self._left = HOLES_LIMIT

    def take(self, size: int, stored: int) -> None:
        """Note that a file of `size` bytes, of which so many are no holes, is read as a whole.

        Raises InvalidImage if that is too much.
        """
        holes = max(0, size - stored)
        if holes > self._left:
            raise InvalidImage(
                f"is {size} bytes long, nearly all of them holes: no more than 1 TiB of those is read"
            )
        self._left -= holes
