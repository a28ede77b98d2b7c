"""The board of the bake-off: rows that are kept, their tables in Markdown, the targets."""
