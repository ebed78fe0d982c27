"""The users' files about registries, in the formats of containerd, podman and docker.

resolver           the endpoints of a repository, by all that the files say
hosts_toml         containerd's hosts.toml              registries_conf  registries.conf
shortnames         names without a registry, and names of local files, which no registry is asked for
credentials        which entry of which file counts     reload           files read again when they change
credential_providers  programs of a cluster's node that hand credentials out, as kubelet asks them
credential_stores  those files, read and changed, and programs that keep credentials
"""
