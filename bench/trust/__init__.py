"""Whether the number can be believed."""
