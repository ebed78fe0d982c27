"""A driver of CSI: images as volumes of pods (Container Storage Interface, spec.md 1.13).

messages   requests and answers as bytes
volumes    what is published: an image's mount shown at a pod's directory
grants     which secrets have opened which images
services   the operations of Identity, Controller and Node
registration  how kubelet learns of the driver
"""
