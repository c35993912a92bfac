"""Other projects' networks in torch, and the import of their checkpoints."""
