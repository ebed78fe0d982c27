"""The composition root: builds what a mount needs, mounts, serves until it is unmounted, takes it all down.

The image is prepared in the calling process, where progress can be shown; the daemon is forked before, and
loads meanwhile what it will need. The caller returns when the kernel's greeting has been answered, or raises
what the daemon could not do. Nothing open crosses the fork: the daemon opens the store itself.

daemon   the daemon's life: forked, loaded, mounted, unmounted
fuse     an image mounted by FUSE; fuse_mount makes and unmakes the mount
kernel   an image mounted by EROFS and overlayfs, over flat layers that the daemon serves
early    an image opened while its registry is asked whether it is the one to mount, or a profile replayed
         while its tree is still imported
erofs_ahead  what that needs, written beside a mount by FUSE, for the next ones
options  how to mount: what the caller tells the daemon
serving  what both have in common: signals, syncs, the status, the kernel's read-ahead

A mount that outlives its daemon (--restart):

holder     keeps /dev/fuse open, notices the end of the daemon, or that it hangs, and starts another; of its
           process are watched_server, holder_orders, idle_requests and holder_protocol, too
successor  that other process, also the one that takes over on an upgrade
idle       a daemon that nothing is asked of ends, until something is
pool       a process that serves many such mounts from then on; courier hands them over
resume     what is handed on: the mount's state, descriptors, pipes to the holder
"""
