"""Registries, their protocol and the files that configure them: fault servers and real ones."""
