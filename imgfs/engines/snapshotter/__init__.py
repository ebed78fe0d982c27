"""A snapshotter for containerd: it says that it has an image's layers, and mounts the image when it is used.

containerd asks for each layer of a pull whether it has to be fetched (`Prepare`, with labels). What this
answers makes it fetch none: each layer is a row. What containers get is one overlayfs mount of their own over
one mount of imgfs, shared by all containers of the image. Images without labels (import, commit, build) are
unpacked by containerd into directories, as its own overlayfs snapshotter has them.

    rows         what snapshots there are: the truth, in SQLite
    labels       what containerd says of a layer
    directories  the upper directories of containers, and layers that were unpacked
    image_mounts a mount of imgfs for each chain of layers in use
    reserve      room on the disk, so that removals can be written down on a full one
    snapshotter  the ten operations
    filters      which snapshots a list is asked for     patterns  regular expressions in there
    messages     requests and answers as bytes       service  the operations as a service of gRPC
"""
