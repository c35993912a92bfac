"""The DPM++ network in torch: backbone, mask generator, the whole model, its checkpoints, and CLIP weights for it."""
