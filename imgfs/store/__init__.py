"""The cache directory: everything by digest, written aside and renamed, shared by any number of processes.

    version                               the layout's number
    documents/sha256/HEX                  manifests, image indexes and configs, as the registry sent them
    references/NAME.json                  what a reference was last resolved to, and when
    layers/sha256/HEX/index               `layer.index`: entries and spans
    layers/sha256/HEX/flat                the flat layer, sparse
    layers/sha256/HEX/presence            which spans of it are there, by which index (`store.flat`)
    layers/sha256/HEX/pin-RANDOM          another name of `flat`, while the kernel reads it (`store.pin`)
    layers/sha256/HEX/part, part.map      its blob, while that is being pulled (`store.partial`)
    layers/sha256/HEX/refuted             whose index of it was found to be wrong, for which DiffID
    layers/sha256/HEX/lock                held while the layer is scanned
    layers/sha256/HEX/users               shared by those who read it; its time is when the last one began
    layers/sha256/HEX/evicted             empty; its time is when that was done the last time
    trees/sha256/HEX                      the merged tree of a manifest
    erofs/sha256-HEX-NUMBER               the same as an EROFS image, in our format of that number (`kernel`)
    profiles/sha256/HEX/NAME.json         what workloads read of the image of a manifest, in which order
    logs/                                 the daemons' logs
    limit, limit.lock                     how many bytes of flat layers are kept (`store.limit`)

Indexes and trees have a checksum inside (`store.checksum`). Who used what, and when, is told by the time of a
lock's file, set once by each mount: access times are switched off on many machines.

A process may be killed at any moment: what it wrote aside is swept by the next one that finds it unlocked.
"""
