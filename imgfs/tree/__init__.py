"""An image's layers merged into one immutable tree: a SQLite file, read a row at a time.

schema       the tables and their rules           paths        a layer's paths cleaned; whiteouts' names
merge        the OCI rules, layer by layer        merge_state  what is remembered within one layer
walk         paths resolved while merging         budget       what a layer's paths may cost
builder      the tree while it is written         database     rows of the file, read under a lock
reader       lookup, children, attributes, extents of a finished tree
parents      from a node up to its directories    import_tree  a tree merged elsewhere, checked

The manifest's digest names the file, which never changes; opening it loads nothing.
"""
