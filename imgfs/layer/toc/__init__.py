"""Tables of contents: layers that bring their own index along (eStargz, zstd:chunked).

detect        which of the two formats a layer is in, by its manifest
estargz       its footers and annotations       zstd_chunked  its footers and annotations
toc           the ranges of a blob that have a table; its entries to a layer's entries and spans
document      the JSON of a table, an entry at a time, and the fields of an entry, checked
extents       chunks of files laid out in the flat layer
"""
