"""The mounts of this machine: how to find one, ask its daemon, mount in a place, and end it.

Nothing here waits for a daemon without an end: it may be stopped, or wait itself.
"""
