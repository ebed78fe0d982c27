"""A file's bytes: out of the cached flat layer if they are there, else fetched, verified, decoded, kept.

A read turns into extents, flat ranges, spans. What is missing is asked for in requests of a sensible size
(`plan`), ahead of readers in sequence (`ahead`), the way an earlier mount needed it (`profile`), or all of it
(`fill`); whatever a reader waits for goes first (`lanes`).

    content > layer > flight > fetch        one read, from the file to the network
    content > fill, profile                 what happens in the background
    plan, ahead, profile, counts, pieces    pure
"""
