"""Compressed bytes to flat ones, and the positions where decoding can begin.

blob         a whole blob decoded in one pass, its format sniffed, its cuts reported
span         one span decoded and verified            frames       zstd, xz and bzip2 frame by frame
gzip         members, blocks and checkpoints, and the bytes of a checkpoint's window that a span needs
zlib_engine  inflate by zlib                          isal_engine  inflate by ISA-L
compress     a tar stream packed as gzip or zstd
"""
