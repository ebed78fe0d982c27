"""The cache directory: everything by digest, written aside and renamed, shared by any number of processes.

    version                               the layout's number
    documents/sha256/HEX                  manifests, image indexes and configs, as the registry sent them
    references/NAME.json                  what a reference was last resolved to, and when
    layers/sha256/HEX/index               `layer.index`: entries and spans
    layers/sha256/HEX/flat                the flat layer, sparse
    layers/sha256/HEX/presence            which spans of it are there (`store.flat`)
    layers/sha256/HEX/part, part.map      its blob, while that is being pulled (`store.part`)
    layers/sha256/HEX/refuted             the repository whose index of it was found to be wrong
    layers/sha256/HEX/lock                held while the layer is scanned; shared by those who read it
    trees/sha256/HEX                      the merged tree of a manifest
    erofs/sha256-HEX-NUMBER               the same as an EROFS image, in our format of that number (`kernel`)
    profiles/sha256/HEX/NAME.json         what workloads read of the image of a manifest, in which order
    logs/                                 the daemons' logs

A process may be killed at any moment: what it wrote aside is swept by the next one that finds it unlocked.
"""

from imgfs.store.flat import Flat as Flat
from imgfs.store.part import Part as Part
from imgfs.store.store import Layer as Layer
from imgfs.store.store import Resolution as Resolution
from imgfs.store.store import Store as Store
