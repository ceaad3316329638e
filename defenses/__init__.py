"""One defense per file, found by file name."""
