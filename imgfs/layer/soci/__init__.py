"""SOCI's zTOCs, read and written.

flatbuffer   the encoding       ztoc         a zTOC as an index
ztoc_writer  an index as one
"""
