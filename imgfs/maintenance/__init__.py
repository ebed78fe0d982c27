"""Upkeep of the store.

gc       what is reachable from the references in it; eviction and removal of the rest
fsck     documents, indexes, trees and cached bytes checked against digests and checksums
"""
