"""The format zoo, all of it: bytes of a layer blob in, one `LayerIndex` out.

`tar` reads entries out of a flat layer, `codec` turns compressed ranges into flat ones and finds the places
where that can begin, `scan` does both in one pass over a download, `index` keeps the result. No code above
this room knows a format. Alone imports zlib, zstandard and ctypes.
"""
