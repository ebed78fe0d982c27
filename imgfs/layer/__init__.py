"""The formats of layers: a blob's bytes in, one `LayerIndex` out. No code above this room knows a format.

entry        the values: Entry, Extent, Span, Checkpoint    limits    what a layer and its indexes may cost
tar/         entries out of a tar stream, and back          codec/    compressed ranges to flat ones
toc/         eStargz and zstd:chunked                       soci/     zTOCs
scan         index a layer while it is downloaded           xattrs    which attributes Linux can keep
schema       the tables of an index                         rows      SQLite files, and values packed in rows
index        an index read                                  indexwriter  an index written, or imported
artifact     an index packed to be published                rewrite   a foreign SQLite file copied row by row
origin       what an index or tree is trusted by            verify    an imported index verified by the DiffID

Alone imports zlib, zstandard and ctypes.
"""
