"""The writable scratch: an upper directory, as overlayfs keeps it, over an image that does not change.

fdtree        directory trees of any depth, by descriptors
acl           POSIX ACLs: inherited, followed by the mode
xattrs        what overlayfs and fuse-overlayfs write beside the files
upper         the upper directory, and the work directory beside it
node          a file that has an upper half, and how it is reached
ctimes        times of change as programs have seen them, although the disk has others
lookup        what a name or an ino means; union: attributes and listings of what both show together
copyup        giving a file of the image an upper half; copyup_data: its data, now or later
ranges        parts of files: allocated, searched for data and holes, copied
entries       changing names: create, remove, link, rename
overlay       all of this as one file system, for `fuse`
resume        going on in the place of a process that was killed
interchange   what overlayfs's index and fuse-overlayfs's whiteout files need
scratch_dir   a scratch's directory: its owner, description and lock
scratch       a scratch on disk; scratches: those of a store
diff          what a scratch changes, as a list and as members of a layer
"""
