"""OCI documents as frozen types. Pure: text and bytes in, values out; no network, no disk.

reference      names of images                        descriptor     digests, platforms, descriptors
image          manifests, indexes, configs            fields         fields of JSON, as Go reads them
select         the manifest of an index for a platform
artifact       artifacts as image manifests           artifact_kind  what an artifact is, and what an image
referrers      lists of what refers to a manifest     foreign        images in formats of other tools
published      the artifact that imgfs publishes      policy         which published indexes are used
soci           SOCI indexes                           named          the digest of one in a manifest
change         configs and manifests with a layer more or fewer
instruction    Dockerfile instructions for a config   words          quotes and variables in one
"""
