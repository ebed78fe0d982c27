"""OCI documents as frozen types. Pure: text and bytes in, values out; no network, no disk.

reference      names of images                        descriptor     digests, platforms, descriptors
image          manifests, indexes, configs            fields         fields of JSON, as Go reads them
select         the manifest of an index for a platform
kind           what a manifest is: an image, an artifact, another tool's image
artifact       artifacts, and the lists of what refers to a manifest
published      indexes published with an image         policy         which of them are used
soci           SOCI indexes
change         configs and manifests with a layer more or fewer, and with OCI media types
instruction    Dockerfile instructions for a config   words          quotes and variables in one
"""
