"""The format zoo, all of it: bytes of a layer blob in, one `LayerIndex` out.

`tar` (with `tarheader`, `pax`, `sparse`) reads entries out of a flat layer. `codec` turns compressed ranges
into flat ones and finds the places where that can begin: gzip by `inflate`, on the engines `deflate` (zlib)
and `isal`; zstd by frames. `scan` does it all in one pass over a download; `index` keeps the result, `entry`
values in `rows`. No code above this room knows a format. Alone imports zlib, zstandard and ctypes.
"""
