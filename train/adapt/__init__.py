"""Adapt a checkpoint to a site from unlabelled crops by camera: centred features, clusters, contrast, in rounds."""
