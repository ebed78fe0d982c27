"""imgfs mounts a container image straight from its registry, lazily, without privileges or conversion.

The words
    reference       a name for an image: `registry/repository:tag`, `…@sha256:…`, `oci:DIR:tag`, `tar:FILE`
    digest          the hash of some bytes, and their name; DiffID: that of a layer's uncompressed tar
    manifest        an image for one platform: config and layers; an image index lists manifests by platform
    layer           a changeset, transferred and stored as a blob: a tar stream, usually compressed
    flat layer      a layer's uncompressed bytes as one address space, kept as a sparse file
    entry           a member of a layer's tar; its contents are extents of the flat layer
    span            a range of the flat layer that can be fetched, decoded and verified on its own
    checkpoint      where inflate can begin in the middle of a gzip member; window: the 32 KiB before it
    layer index     a layer's entries and spans in SQLite: from a scan, or imported (TOC, zTOC, published)
    voucher         what an imported index is trusted by: a digest in the manifest, or a repository's word
    presence map    a byte for each span: present, synced, and a count of its evictions
    temporary file  locked by its writer, synced, then renamed to its target (`store.atomic`)
    span buffer     a span's decoded bytes until they are verified, where no reader sees them
    in flight       a request for the span is queued or under way; all readers of the span wait for it
    access profile  the spans that a mount's readers touched, in order: replayed in the next mount
    tree            all layers merged by the OCI rules, in SQLite; node: a file of it, by its inode number
    scratch         where a mount's changes are kept: an upper and a work directory, as overlayfs has them
    copy-up         copying a file of the image to the upper directory before it is changed
    whiteout        marks a name of the image as deleted; an opaque directory hides all below it

The rooms, from the bottom (a room imports only what stands above it in this list)
    variables   the environment, read
    errors      the exception tree            config      what the environment says
    buffers     large ones                    garbage     how often Python looks for it
    quoting     untrusted text as one printable line
    syscalls    system calls that Python lacks, by ctypes
    program     another program asked something, within bounds
    status      what a mount says of itself: frozen types and their JSON
    starting    threads and processes, of which there may be no more
    parallel    several tasks at once
    loglines    log records as lines          systemd     what it and a service tell each other
    listening   for clients that are not trusted: few, with deadlines
    oci/        reference, descriptor, image: documents, pure
    owned/      files that could be another user's or process's: opened, locked, swept
    registry/   the distribution protocol     layer/      formats in, LayerIndex out
    store/      the cache directory
    peers/      cached layers, read from other machines' imgfs and served to them
    transport/  where images come from and go to: a registry, an OCI layout, archives
    commit      a new image: another one and a layer of changes
    tree        the merged tree on disk       content     a file's bytes: cached, or fetched on demand
    overlay     the writable scratch: an upper directory over a tree  predict     what is read next, guessed
    image       a whole image made ready    maintenance  gc and fsck of the store
    mounts/     the kernel's mount table    daemonize   a process that outlives its caller
    forkserver/  a waiting process that forks one for each command: their memory is shared
    metrics     a mount's status for Prometheus
    publish     an image's indexes, as artifacts in its registry
    signatures/  signatures by cosign and by GPG keys, attestations, and policy.json's verdict
    packages/   what is installed in an image, by its package managers' files
    runtime/    a container of a mounted image: its bundle, and an OCI runtime started on it
    fuse/       FUSE requests and their answers  kernel/     the kernel's own file systems over an image
    report/     an image or a mount as one page of HTML
    mount/      composition root: builds everything, mounts, serves, unmounts
    manual/     the user's and the developer's book
    engines/    containerd's snapshotter, and how a node is told of it
    cli/        arguments in, text out
    api/        the same for Python programs: `imgfs.open`, fsspec

The cold read, in eight steps: `fuse.operations` (READ of an inode) -> `content.content` (its extents to flat
ranges) -> `content.layer` (present: read it from the store; else join or start a request) -> `content.fetch`
(one request: a range of the blob, split into spans) -> `transport.registry` -> `registry.client` and `.blobs`
(mirrors, redirects, retries) -> `layer.codec.span` (decode and verify a span) -> `store.flat` (write it and
mark it present); its readers wake up. A write: `fuse.writable` -> `overlay` (copied up already? pwrite).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from imgfs.api import DirectoryEntry, FileStat, Image, ImageLayer, Step, open  # noqa: A004 (as gzip.open)

__all__ = ["DirectoryEntry", "FileStat", "Image", "ImageLayer", "Step", "__version__", "open"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load the Python interface when a program first uses it: commands do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("imgfs.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
