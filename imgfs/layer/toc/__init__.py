"""Tables of contents: layers that bring their own index along (eStargz, zstd:chunked).

detect        which of the formats a layer is in, if any
estargz       its footers and annotations       zstd_chunked  its footers and annotations
document      the JSON of a table, read with bounds
toc           from its entries to a LayerIndex  extents       where their bytes are in the flat layer
ranges        the pieces of a blob that are read for it
"""
