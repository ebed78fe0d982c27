"""What POSIX asks of a file system, case by case, on every kind of mount."""
