"""What runs the project: install, quickstart, test and bench, and the laboratory they share."""
