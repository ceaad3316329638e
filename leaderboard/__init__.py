"""Result files in, tables and figures out. Never sees a model."""
