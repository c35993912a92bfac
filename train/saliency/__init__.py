"""Where the person is, for SPT: learned from identities, segmented by a shipped network, or rendered labels."""
