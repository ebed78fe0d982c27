"""The wire to a registry (OCI distribution-spec): requests, authorization, mirrors, uploads.

config/           files of users: hosts.toml, registries.conf, credentials; the resolver reads them
endpoint          where to ask for a repository, and how
mirrors           reads at several endpoints in order    endpoint_state  back-off and record of each of them
client            one repository at one endpoint; login
manifests         manifests and tags                     blobs           blobs, whole or by range
referrers         the referrers API and its tag schema   upload          one blob pushed, in chunks
session           requests along redirects, with Authorization
auth              challenges and tokens, as generators   authenticator   the same over the wire
ssrf              which hosts a registry may name: token servers, redirects, upload locations
transport         single requests over kept connections; it and `adapter` alone import urllib3
adapter           how urllib3 is used                    messages        bodies sent, responses received
sockets           connections with deadlines, and DNS    proxies         which one to use; SOCKS5
tls               certificates (certs.d), TLS contexts   urls            the one parser of URLs
errors            error responses as exceptions          retry           time-outs, tries and pauses
"""
