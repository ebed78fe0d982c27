"""A container of an image: the config.json of an OCI runtime, and the runtime started on it.

`spec` turns an image's config, the user's request (`request`, `security`, `resources`) and the machine's
facts (`host_facts`, with the ids of a user namespace) into a config.json, without I/O; `seccomp` does so with
a profile. `rootfs` and `user` look into the mounted image, `host` and `devices` at the machine. `namespace`
has a child process do the rest in namespaces of its own: there the image is mounted, `bundle` writes what the
runtime reads, `oci_runtime` runs it and `teardown` ends it; processes are held by `process_id`, never
known by a number.
"""
