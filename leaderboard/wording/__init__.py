"""How marks, ranks, intervals and paths are shown, in every form of a board."""
