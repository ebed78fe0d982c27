"""imgfs mounts a container image straight from its registry, lazily, without privileges or conversion.

The words
    reference   a name for an image: `registry/repository:tag`, `…@sha256:…`, `oci:DIR:tag`
    digest      the name of some bytes forever; diff_id: the digest of a layer's uncompressed tar
    manifest    an image for one platform: a config and layers; an index picks the manifest by platform
    layer       one set of differences, stored compressed as a blob, presented as a flat layer
    flat layer  the layer's one uncompressed address space: the tar stream itself
    entry       a member of a layer; its bytes are extents of the flat layer
    span        a piece of the flat layer that can be fetched, verified and decoded alone
    checkpoint  where inflate can begin in the middle of a gzip member; window: the 32 KiB before it
    tree        all layers merged by the OCI rules; node: a file of it, named by its ino
    scratch     where a mount's changes are kept: an upper and a work directory, as overlayfs has them
    copy-up     giving a file of the image an upper half; whiteout: a name of the image's that is deleted

The rooms, from the bottom (a room imports only what stands above it in this list)
    errors      the exception tree            config      what the environment says
    parallel    several long tasks side by side  quoting     strangers' texts as lines that print
    syscalls    system calls that Python lacks, by ctypes
    oci/        reference, descriptor, image: documents, pure
    owned/      what could be another user's or process's: opened, made and swept by rule
    registry/   the distribution protocol     layer/      formats in, LayerIndex out
    store/      the cache directory
    transport/  where images come from and go to: a registry or an OCI layout
    commit      an image out of another and what was changed in it
    tree        the merged tree on disk       content     a file's bytes, on demand
    overlay     the writable scratch: an upper directory over a tree
    image       a whole image made ready    maintenance  gc and fsck of the store
    mounts/     the kernel's mount table    daemonize   a process that outlives its caller
    metrics     what a mount says of itself, for Prometheus
    publish     what an index of an image is made of, for others
    runtime/    a container of a mounted image: its bundle, and an OCI runtime started on it
    fuse/       the kernel's requests answered  kernel/     the kernel's own file systems over an image
    mount/      composition root: builds everything, mounts, serves, unmounts
    manual/     the user's and the developer's book
    cli/        arguments in, text out

The journey of a read: `fuse.operations` -> `content` -> (`store`: present? pread) -> `transport` fetches a
span -> `layer.codec` decodes and verifies it -> `store` keeps it. Of a write: `fuse.writable` -> `overlay`
(copied up? pwrite).
"""

__version__ = "0.1.0"
