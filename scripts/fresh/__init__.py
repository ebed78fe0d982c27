"""README's commands on a machine where nothing was installed by hand: `scripts/test --fresh`.

    __main__   from the command line to the exit code; nothing is left behind, however it ends
    machine    how this machine reaches its package registries: that, and nothing else, the fresh one is given
    root       a bare Debian root file system with a clone of this checkout in it
    contained  run a command in that root: its own mounts, processes and /dev, with /dev/fuse
    journey    what is run there

Only Python's own library and util-linux are used: this runs where imgfs is not installed.
"""
