"""Tar, read and written: headers, PAX records, sparse files, and streams of entries.

header    one 512-byte header          pax       extended headers
sparse    GNU's four sparse formats    reader    entries out of a stream      writer    a stream of entries
"""
