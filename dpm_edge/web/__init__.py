"""What every web server of this package shares: where it listens, whom it lets in, how its numbers are written."""
