"""imgfs inside the engines: what containerd, Kubernetes and podman ask to show images.

snapshotter/  containerd's proxy snapshotter: layers that are not fetched but mounted
node/         how a machine is told of it: containerd's configuration, systemd's unit
"""
