"""Long work on galleries: filling from an archive, moving to a new model."""
