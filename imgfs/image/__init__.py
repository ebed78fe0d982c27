"""A whole image made ready to read: resolved, its layers indexed, its tree merged, all in the store.

`prepare` does what needs network and time and leaves the result in the store; `Image` opens that result.
They are two steps, for two processes: the second is the daemon's, and no open file crosses the fork. An image
that `is_ready` needs no module of those that prepare one: loading them takes time, too.

    resolve        a reference and a platform to manifest and config
    trust          which indexes and trees made elsewhere may be used; what of an image is stored
    discover       what is published for an image: imgfs's artifact, SOCI indexes
    import_index   those, and tables of contents, written as the store's own index
    indexing       one layer: import an index, else stream the layer and have it scanned
    scanners       processes that scan layers, one for each core, or threads; scan_process: what is in one
    prepare        all layers indexed, several at once, and the tree merged
    image          a prepared image, opened: tree and contents
    pull           prepare, and fetch every span
    verify         complete layers checked against their DiffIDs
"""
