"""Layers and functions that mixers and models share; a mixer imports these and never another mixer."""
