"""The laboratory: real images, a real registry and a slow link, for the quickstart, the tests and the bench.

layout      write an image as an OCI layout        recipes     Debian, Python and Node images; synthetic trees
torch       an image with torch for the CPU
containerd  a containerd of our own: images to eStargz
registry    docker-registry on loopback; push      link        a TCP proxy with a bandwidth and a round trip
"""
