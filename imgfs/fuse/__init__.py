"""The kernel's requests answered. Alone imports pyfuse3, and is the one boundary between errors and errno."""
