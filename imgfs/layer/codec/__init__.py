"""Compressed ranges into flat ones, and where that can begin.

codec        a span decoded; the codecs by name       compress     a stream compressed, with its digests
gzip         members, blocks and checkpoints          window       the 32 KiB before a checkpoint
zlib_engine  inflate by zlib                          isal_engine  inflate by ISA-L
xz_bzip2     layers that are streamed only            threads      inflating beside reading
"""
