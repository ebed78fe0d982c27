"""Where images come from and go to: a registry, an OCI layout or an archive, behind two small protocols.

source         the protocol of where an image comes from, and a source that changes another one
destination    the same of where it goes to
connect        the source of what a reference names: at once, when needed, or with no registry
copy           an image from a source to a destination
parcel         what is copied, collected before; converted to OCI media types if it must be
registry       the source that is a registry        layout     the source that is an OCI layout directory
files          files of this machine that hold an image       open_file  the table of their transports
archive        a tar of them, read in place        packed     the same packed: indexed once, then entered
docker_archive, directory, root_tar   the sources of `docker-archive:`, `dir:` and `tar:`
containers_storage   that of podman's own store    tar_split  a layer's tar, of unpacked files
docker_daemon, containerd   those of running engines    open_engine  the table of them
docker_engine  the Docker Engine API    grpc, protobuf  containerd's    engine_socket, engine_names  of both
archive_writer oci-archive and docker-archive, written       open_destination  what a reference names
layout_writer  an OCI layout directory, written to  parallel   a layer fetched in several requests at once
"""
