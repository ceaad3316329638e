"""Results in, one table out: what every form of a board shows. `build.build_table` makes it."""
