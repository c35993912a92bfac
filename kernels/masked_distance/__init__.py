"""masked_distance: similarity under each query's prototype mask, without a masked copy of any target."""
