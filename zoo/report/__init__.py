"""Numbers, plots, tables and files: how everything that was found becomes text, pictures and bytes on a disk."""
