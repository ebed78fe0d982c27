"""The kernel's requests answered: FUSE as bytes, and the one boundary between errors and errno."""
