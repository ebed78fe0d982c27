"""The formats of layers: a blob's bytes in, one `LayerIndex` out. No code above this room knows a format.

entry        the values: Entry, Extent, Span, Checkpoint    limits    what an image and its indexes may cost
tar/         entries out of a tar stream, and back          codec/    compressed ranges to flat ones
toc/         eStargz and zstd:chunked                       soci/     zTOCs
scan         index a layer while it is downloaded: its entries, and its spans with their digests
schema       the tables of an index, and packed values      sqlite    SQLite files; foreign ones rewritten
index        an index read                                  indexwriter  an index written, or imported
artifact     an index packed to be published                origin    what an index or tree is trusted by
verify       an imported index verified by the DiffID

Alone imports zlib, zstandard and ctypes.
"""
