"""The users' files about registries, in the formats of containerd, podman and docker: where they are, how to get in.

resolver         the endpoints of a repository, by all that the files say
hosts_toml       containerd's hosts.toml               registries_conf  registries.conf
certs_d          the directories certs.d               shortnames       what a name without a registry stands for
credentials      which entry of which file counts      authfile         those files, read and changed
credhelpers      programs that keep credentials        reload           files read again when they change
"""
