"""The mounts of this machine.

table           mountinfo, and which of its mounts are imgfs's
mountpoint      checks before a mount: directory, /dev/fuse, fusermount3
holders         the processes that have a mount served again
status_client   read a mount's status from its daemon, within a deadline
unmount         unmount, and wait for the daemon to end

No function waits without end for a daemon: it may be stopped, or wait for a disk itself.
"""
