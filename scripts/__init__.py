"""What runs the project: install, quickstart, test, bench, soak and fuzz, and the laboratory they share."""
