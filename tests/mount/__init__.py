"""Mounts through the kernel, by both drivers, and the commands about them."""
