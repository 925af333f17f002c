"""Readers of public datasets in their published folder layouts, for `python -m trainer prepare`."""
