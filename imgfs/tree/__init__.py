"""An image's layers merged into one immutable tree: a SQLite file, read a row at a time.

paths        a layer's paths cleaned; whiteouts' names; what paths may cost
merge        the OCI rules, layer by layer; merge_state: what is remembered within one layer
walk         paths resolved while merging
builder      the tree while it is written
database     the file: its tables and their rules, rows read under a lock
names        where a node stands
reader       lookup, children, attributes, extents of a finished tree
import_tree  a tree merged elsewhere, checked
versions     a tree that has what upper layers hide, too; efficiency: how much of all that shows

The manifest's digest names the file, which never changes; opening it loads nothing.
"""
