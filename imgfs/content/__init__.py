"""A file's bytes: from the cached flat layer if they are present, else fetched, verified, decoded and stored.

A read maps a file's extents to flat ranges and those to spans. Missing spans are fetched by range requests;
concurrent readers of a span share one request, and requests that a reader waits for go first.

    content      an image's files: extents to flat ranges; starts and ends the background work
    layer        one flat layer: reads, misses, read-ahead, the rest of a layer
    inflight     the requests under way, by span: one for each, however many readers wait for it
    fetch        one request: range of the blob, split into spans, decoded, verified, written
    scheduler    the threads that fetch, by priority
    requests     which spans go into one request; the table of a layer's spans (pure)
    readahead    sequential readers and the window ahead of each (pure)
    treewalk     readers of whole trees (tar, grep -r): prefetch in the tree's order
    profile      access profiles: recorded in one mount, replayed in the next (pure)
    background   fetch of the whole image while no reader waits
    stats        counters; timeline: sums over time
    stats_memory where they are kept, and the profile in the making: they outlive a killed daemon
"""
