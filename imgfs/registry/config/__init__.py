"""The users' files about registries, in the formats of containerd, podman and docker.

resolver         the endpoints of a repository, by all that the files say
hosts_toml       containerd's hosts.toml               registries_conf  registries.conf
certs_d          the directories certs.d               shortnames       names without a registry
local_names      names of files and layouts, which no registry is asked for
credentials      which entry of which file counts      authfile         those files, read and changed
credhelpers      programs that keep credentials        reload           files read again when they change
"""
