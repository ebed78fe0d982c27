"""imgfs inside the engines: what containerd, Kubernetes and podman ask to show images.

rpc           gRPC on a Unix socket            refusal   errors with a code of gRPC
command       imgfs's own commands, run          liveness  whether a mount answers
snapshotter/  containerd's proxy snapshotter: layers that are not fetched but mounted
cri           the passwords of kubelet's pulls, heard on their way to containerd
csi/          a driver of CSI: images as volumes of Kubernetes' pods
podman_store  an additional image store for podman, buildah and CRI-O
node/         how a machine is told of it: containerd's configuration, systemd's unit
"""
