"""What in the store belongs to what, what of it can go, and whether it is what it was."""
