"""The kernel's own file systems over an image: EROFS for what is in it, overlayfs for what is changed.

erofs       the on-disk format: inodes, directories, attributes, as functions of bytes
placing     where in the layers' flat files a file's bytes are
assembled   files that no block of a flat file holds as they are
metadata    a whole tree as one EROFS image, kept in the store
linux       the system calls that mount
driver      what stands between the flat files and the mount point, set up and taken down
"""
