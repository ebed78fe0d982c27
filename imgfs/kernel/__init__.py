"""The kernel's own file systems over an image: EROFS for what is in it, overlayfs for what is changed.

erofs_format  the on-disk format: inodes, directories, attributes, file handles, as functions of bytes
chunk_index   where in the layers' flat files a file's bytes are; the device of files that must be assembled
mkfs          a whole tree as one EROFS image
erofs_image   that image in the store: found, written, or written beside a mount by another process
passthrough   layers that the kernel reads from the store's own files; wrong cached pages dropped
driver        the mounts from the flat files up to the mount point, set up and taken down
"""
