"""A whole image made ready to read: resolved, its layers indexed, its tree merged, all in the store.

`prepare` does what needs network and time and leaves the result in the store; `Image` opens that result.
They are two steps, for two processes: the second is the daemon's, and nothing open crosses the fork.
Who has an image that `is_ready` needs none of what prepares one: that takes time to load, too.
"""
