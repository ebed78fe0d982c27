"""Directories and files that could be another user's or process's: who owns them, which process holds them.

opening     open a directory or file only if it is this user's own
regular     open a path only if it is a regular file
held        make a file or directory that is locked from its first moment; sweep those that no process holds
writing     write all bytes; errors of the disk as StoreError
"""
