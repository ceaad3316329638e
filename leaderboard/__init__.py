"""Result files in, tables out. Never sees a model."""
