"""The packages that are installed in an image, told by the plain files of their package managers.

`installed` finds these files in an image's tree and reads no others; `deb`, `rpm` and `metadata` read them;
`package` has what is known of a package, and its name for programs, the purl; `cyclonedx` writes a bill of
materials. All of it is what the image says of itself: bytes of any kind and length, so that every reader here
is bounded, and what is malformed is left out and named.
"""
