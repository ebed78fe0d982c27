"""Functions of bytes and of objects, in the process of the test."""
