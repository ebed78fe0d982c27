"""The kernel's own file systems over an image: EROFS for what is in it, overlayfs for what is changed.

erofs       the on-disk format: inodes, directories, attributes, as functions of bytes
placing     where in the layers' flat files a file's bytes are
assembled   files that no block of a flat file holds as they are
handles     which file of a tree the kernel means by a handle
metadata    a whole tree as one EROFS image, kept in the store
writer      a process that writes that beside a mount, for those to come
passthrough layers that the kernel reads from the store's own files
pages       what the kernel has in memory of files that turn out to be wrong
driver      what stands between the flat files and the mount point, set up and taken down
"""
