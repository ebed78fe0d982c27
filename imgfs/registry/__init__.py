"""The registry's side of the wire (OCI distribution-spec): who may, what is asked, what came back.

client        one repository: all that is asked of it
manifests     its manifests, by tag or digest      blobs    its blobs, read whole or in pieces
tags          the list of its tags                 pages    lists that come in pages
referrers     what refers to its manifests: the registry's list, or one kept under a tag
session       requests with authorization, along redirects
transport     single requests over kept connections: alone imports requests
auth          the authentication dance, as generators over plain values
credentials   the auth files of docker and podman, and their helpers
upload        one blob on its way in
body          what is sent of a blob, its digest checked
ranges        what a response says it carries of a blob
refusal       error responses as exceptions
retry         when to try again, and when to stop
"""
