"""The cache directory: everything by digest, written by rename, shared by any number of processes.

    version                               the layout's number
    documents/sha256/HEX                  manifests, image indexes and configs, as the registry sent them
    references/NAME.json                  what a reference was last resolved to, and when
    layers/sha256/HEX/index               `layer.index`: entries and spans
    layers/sha256/HEX/flat                the flat layer, sparse
    layers/sha256/HEX/presence            which spans of it are there, by which index (`store.flat`)
    layers/sha256/HEX/pin-RANDOM          another name of `flat`, while the kernel reads it (`store.flat`)
    layers/sha256/HEX/part, part.map      its blob, while that is being pulled (`store.partial`)
    layers/sha256/HEX/refuted             the voucher whose index of it was wrong, and for which DiffID
    layers/sha256/HEX/lock                held while the layer is scanned
    layers/sha256/HEX/users               locked by its readers; its mtime is when the last one began
    layers/sha256/HEX/evicted             empty; its mtime is when the layer was last evicted
    trees/sha256/HEX                      the merged tree of a manifest
    erofs/sha256-HEX-NUMBER               the same as an EROFS image, of that format number (`kernel`)
    profiles/sha256/HEX/NAME.json         what workloads read of the image of a manifest, in which order
    logs/                                 the daemons' logs
    limit, limit.lock                     how many bytes of flat layers are kept (`store.limit`)

Indexes and trees have a checksum inside (`store.checksum`). When a layer was last used is the mtime of its
file `users`, set once by each mount: access times are switched off on many machines.

A process may be killed at any moment: its temporary files are removed by the next process that finds them
unlocked (`store.atomic`).

    store       documents, references, layers, trees and profiles: the directory as a whole
    layer       one layer's directory: index, flat layer, partial download, locks
    flat        the flat layer: reads, writes of verified spans, eviction; pins, while the kernel reads it
    flat_files  its two files: the bytes, and the presence map with its format and its lock
    staging     bytes until they are verified: a span that is fetched, a flat layer that is scanned
    partial     a blob that is being pulled
    limit       eviction by size and age
    times       when a file was last used, by a clock that may have been wrong
    atomic      writes by rename, and locks; checksum: the CRC in SQLite files
"""
