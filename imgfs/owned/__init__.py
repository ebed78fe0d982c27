"""Directories and files that could be another user's or process's: who owns them, and who holds them.

opening     opens one only if it is this user's own
held        makes one that is held from its first moment, and sweeps those that no process holds
"""
