"""Layers shared between machines: what one imgfs has cached, another reads from it instead of the registry.

A peer serves flat bytes: what spans decode to, by the name of the flat layer (`flat_name`). It is not
trusted. Each span that comes from one follows from a digest that the reader's own index has of its flat
bytes (`layer.flat_digests`); a span without such a digest comes from the registry. A layer without an index
comes from peers as a whole, checked by its DiffID (`layer_spans`, `image.peer_stream`). What peers have is
asked for (`presence`), and which of them is read from is decided on that (`pool`); `client` speaks to one. A
blob that several machines download at once they divide among them (`arriving`, `division`,
`transport.shared_download`). The other side is `server`, which serves what `cached_layers` finds in the
store, and `arriving_blobs`.
"""
