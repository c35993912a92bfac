"""`dpm-edge demo`: the sample people that ship, or the people of a video."""
