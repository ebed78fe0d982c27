"""imgfs measured beside what a user would use instead, in one run, on the same images and the same link.

    machine      how fast the machine itself is
    clock        run and time commands; the page cache       stage       images, registry, scratch space
    tools        imgfs, podman, skopeo + umoci               report      tables for people, JSON for machines
    journey      from a reference to a running application
    overlays     imgfs's scratch, fuse-overlayfs, overlayfs, a plain copy
    engines      imgfs run, podman run, runc on a directory
    works        what is done in them                        material    what they take
    editions     an image plain, indexed, with a profile of what it reads, as eStargz, with SOCI's index
    snapshotters a containerd with imgfs, overlayfs, stargz-snapshotter or SOCI
    pods         a pod on it, by CRI

    A  first     first mounts, from nothing, beside the other tools
    B  warm      warm mounts up to a million entries          memory     the daemon's resident memory
    C  reading   find, tar, sequential and random reads, beside the unpacked directory
    D  lazy      what crosses the wire when the index is known and the data is not
    E  first     CPU seconds of the first mounts
    F  scratch   work in a writable scratch: unpack, clone, install, build, copy, change
    G  cold      from an empty store over a slow link, with every kind of index, beside podman pull and run
    H  containers
                 their start, cold over a slow link and with everything here, beside podman run and runc
    I  drivers   find, tar, git, grep, reads: imgfs by FUSE and by the kernel, beside overlayfs,
                 fuse-overlayfs and the unpacked directory; the daemons' CPU and memory
    J  looking   diff, waste, grep, cp and an archive's mount, beside fetching and unpacking whole images
    K  node      containerd with imgfs, overlayfs, stargz-snapshotter and SOCI: from a pull by CRI to an
                 application that answers, memory and CPU of many images and containers. Go builds containerd
                 and crictl; for the programs of the others see scripts/lab/go_programs.py
    L  models    a model file of 1 GB, not compressed, over a slow link: in sequence, and mapped at random

Absolute times move from machine to machine: the ratios are what to compare.
"""
