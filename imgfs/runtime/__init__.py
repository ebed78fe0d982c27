"""A container of an image: what an OCI runtime is to be told, and the runtime started with it.

`spec` turns an image's config, what the user asked for (`wishes`, `rights`, `limits`) and what there is
(`place`) into a config.json, and touches nothing; `seccomp` does so with a profile. `rootfs` and `user` look
into the mounted image, `host` and `machine` at the machine. `namespace` has a child process do the rest out
of everybody's sight: there the image is mounted, `bundle` writes what the runtime reads, `engine` runs it.
"""
