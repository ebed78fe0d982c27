"""Directories and files that could be another user's or process's: who owns them, which process holds them.

opening     open a directory or file only if it is this user's own, a path only if it is a regular file
inheritance a lock that several processes have, one after the other
writing     temporary files and directories that a process holds, and the sweep of those that none does;
            all bytes written, and errors of the disk as StoreError
"""
