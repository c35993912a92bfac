"""Exact and approximate search of gallery rows, re-ranking, and how much an index misses."""
