"""A gallery as one file."""
