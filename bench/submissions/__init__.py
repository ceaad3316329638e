"""What others send a board: rows in bundles, their check, and adversarial images for rows that are there."""
