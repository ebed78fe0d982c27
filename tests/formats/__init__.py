"""Layer formats and their indexes: read, written, damaged; other tools as oracles."""
