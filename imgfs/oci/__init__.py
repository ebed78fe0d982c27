"""OCI documents as frozen types: references, descriptors, manifests, indexes, configs.

Pure: text and bytes in, values out. Nothing here touches the network or the disk.
"""
