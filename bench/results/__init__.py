"""Result files, and every number that is derived from them; no torch."""
