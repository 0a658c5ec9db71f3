"""Studies: variants of one recipe trained on the same data, compared in a table and on a page."""
