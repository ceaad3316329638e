"""Result files in, tables, pages and figures out. Never sees a model."""
