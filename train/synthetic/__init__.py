"""Rendered people: an endless, freely licensed training set with exact labels of what is visible."""
