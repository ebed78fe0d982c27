"""The scripts, the manual and the package themselves."""
