"""The wire to a registry (OCI distribution-spec): requests, authorization, mirrors, uploads.

config/           files of users: hosts.toml, registries.conf, certs.d, credentials; the resolver reads them
endpoint          where to ask for a repository, and how
mirrors           reads at several endpoints in order    endpoint_state  back-off and record of each of them
client            one repository at one endpoint
manifests         manifests and tags                     blobs           blobs, whole or by range
referrers         the referrers API and its tag schema   upload          one blob pushed, in chunks
upload_body       the body of an upload, with its digest checked
session           requests along redirects, with Authorization
challenges        WWW-Authenticate and scopes
auth              token authentication as generators     authenticator   the same over the wire
redirect_auth     tokens of registries that a redirect leads to
redirects         where a redirect or an upload location may lead
ssrf              which hosts and realms a registry may name
login             check of credentials before they are kept
transport         single requests over kept connections; it and `adapter` alone import urllib3
adapter           how urllib3 is used                    response        a response and its body
sockets           connections with deadlines             socks           the same through a SOCKS5 proxy
dns               names resolved within a deadline       proxies         which proxy the environment names
tls               TLS contexts                           urls            the one parser of URLs
errors            error responses as exceptions          retry           time-outs, tries and pauses
"""
