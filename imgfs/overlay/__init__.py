"""The writable scratch: an upper directory, as overlayfs keeps it, over an image that does not change.

at, fdtree            files named by descriptors; directory trees of any depth
xattrs, whiteouts     what overlayfs and fuse-overlayfs write beside the files
upper, directories    the upper directory, and the directories in it that are open
node, union, listing  what upper directory and image show together
image_data, copyup    giving a file of the image an upper half; undo, complete
entries, renaming     changing names
overlay               all of this as one file system, for `fuse`
inode_index, in_use   what the kernel's overlayfs keeps, and whether it is mounted
scratch_dir           a scratch's directory: its owner, description and lock
scratch, scratches    a scratch on disk; those of a store
scratch_tree          making and removing its directories
diff                  what a scratch changes, as a list and as members of a layer
"""
