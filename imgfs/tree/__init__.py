"""An image's layers merged into one immutable tree, kept on disk and read a row at a time.

`merge` applies the OCI rules to layer indexes and writes a SQLite file, `tree` answers from it: lookup,
children, attributes, extents. The file is named by the manifest and never changes; opening it loads nothing.
"""
