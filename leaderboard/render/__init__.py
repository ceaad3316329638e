"""Tables as Markdown, pages, JSON and CSV. `files.write_leaderboard` writes them."""
