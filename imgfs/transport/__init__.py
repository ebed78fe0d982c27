"""Where images come from and go to: a registry, or an OCI layout, behind two small protocols.

source         the protocol of where an image comes from, and how one is opened
destination    the same of where it goes to
copy           an image from a source to a destination
registry       the source that is a registry        layout     the source that is an OCI layout directory
layout_writer  an OCI layout directory, written to  wrapped    sources that put off or change another one
offline        a source that asks no registry       inline     blobs that a descriptor carries
parallel       several documents fetched at once
"""
