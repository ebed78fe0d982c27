"""The tables of a tree's file: what `merge` writes and `reader` reads."""

from __future__ import annotations

from imgfs.layer.rows import LARGEST, TIME_RULE, integers, typed

FORMAT = 4  # of the file; another number means: merge the layers again
PUBLISHED_FORMAT = 3  # of a published file: without an origin
ROOT = 1  # the ino of the root: FUSE's, too
STRIDE = 64  # every so many names of a directory, one is indexed by its position

# `layer.space` is what the layer's index says of its flat layer: extents count in that, and in no other.
#
# A node's bytes are extents of the flat layer number `layer`: one of all its `size` bytes at `flat`, or those
# packed in `extents`, or none. `target` and the two blobs come last: whatever their size, a row's attributes
# are on its first page.
#
# `dirent` is clustered by (parent, name): a lookup is one descent, and a directory's names lie side by side.
# `position` counts them from 1, in the order of their bytes: where a reader of a directory has got to. To go
# on from there takes the name at that position; `milestone` has one in STRIDE, so names are not stored twice.
SCHEMA = """
CREATE TABLE summary (format_number INTEGER, layers INTEGER, nodes INTEGER, size INTEGER, origin TEXT);
CREATE TABLE layer (number INTEGER PRIMARY KEY, space TEXT);
CREATE TABLE node (ino INTEGER PRIMARY KEY, mode INTEGER, uid INTEGER, gid INTEGER, size INTEGER,
                   mtime_ns INTEGER, nlink INTEGER, device INTEGER, blocks INTEGER, layer INTEGER,
                   flat INTEGER, extents BLOB, target BLOB, xattrs BLOB);
CREATE TABLE dirent (parent INTEGER, name BLOB, ino INTEGER, position INTEGER,
                     PRIMARY KEY (parent, name)) WITHOUT ROWID;
"""
# What holds for every row of a tree, an imported one too; see `first_invalid_table`.
RULES = {
    "summary": integers(0, LARGEST, "layers", "nodes", "size"),
    "layer": f"{typed('integer', 'number')} AND {typed('text', 'space')} AND "
    "number BETWEEN 0 AND (SELECT count(*) FROM layer) - 1 AND "
    "(SELECT layers FROM summary) = (SELECT count(*) FROM layer)",
    "node": f"{integers(0, 0xFFFF, 'mode')} AND (mode >> 12) IN (1, 2, 4, 6, 8, 10) AND ino > 0 AND "
    f"{integers(0, (1 << 32) - 1, 'uid', 'gid', 'nlink')} AND "
    f"{integers(0, LARGEST, 'size', 'device', 'blocks')} AND {TIME_RULE} AND "
    f"(flat IS NULL OR {integers(0, LARGEST, 'flat')}) AND "
    f"{typed('blob null', 'extents', 'target', 'xattrs')} AND (target IS NULL) = ((mode >> 12) != 10) AND "
    "(target IS NULL OR length(target) BETWEEN 1 AND 4095 AND length(target) = size AND "
    "instr(target, x'00') = 0) AND ((mode >> 12) = 8 OR flat IS NULL AND extents IS NULL) AND "
    f"{typed('integer', 'layer')} AND layer BETWEEN 0 AND max(0, (SELECT layers FROM summary) - 1)",
    "dirent": f"{typed('integer', 'parent', 'ino', 'position')} AND {typed('blob', 'name')} AND "
    "length(name) BETWEEN 1 AND 255 AND position > 0 AND instr(name, x'2f') = 0 AND instr(name, x'00') = 0 "
    "AND name NOT IN (x'2e', x'2e2e') AND ino IN (SELECT ino FROM node)",
}
MILESTONES = f"CREATE INDEX milestone ON dirent (parent, position) WHERE position % {STRIDE} = 0"
