"""The registry's side of the wire (OCI distribution-spec): who may, what is asked, what came back.

mirrored      one repository at several endpoints: reads go on elsewhere
candidate     one of those endpoints               health   how it goes there
endpoint      where to ask, and how                places   the endpoints of a repository, by all that is said
hostsfile     containerd's hosts.toml            registriesconf  containers' registries.conf
certificates  the directories certs.d            shortnames  what a name without a registry stands for
toml, watched  fields of such files, and files that are read again when they change
client        one repository at one endpoint: all that is asked of it
manifests     its manifests, by tag or digest      blobs    its blobs, read whole or in pieces
tags          the list of its tags                 pages    lists that come in pages
referrers     what refers to its manifests: the registry's list, or one kept under a tag
session       requests with authorization, along redirects
urls          what a URL says: one parser for all that servers and files say
redirects     where those may lead
transport     single requests over kept connections; it and `adapter` alone import urllib3
sockets       connections that end in time        socks    by way of a SOCKS proxy
proxies       which proxy the environment asks for
names         what a host's name means, within its time
response      what comes back                      failure  why nothing does
tls           whom TLS believes, and what it shows
auth          the authentication dance, as generators over plain values
dance         that dance over the wire            guests   at registries that we are led to
realm         which token servers are believed
credentials   what the files of docker and podman say of a registry
authfile      those files, read and changed      credhelpers   programs that keep credentials
login         whether a registry lets somebody in
upload        one blob on its way in
body          what is sent of a blob, its digest checked
ranges        what a response says it carries of a blob
refusal       error responses as exceptions
retry         when to try again, and when to stop
"""
