"""The memory of cluster means and the loss against it (cluster contrast, arXiv 2103.11568).

B pictures · C clusters · D dimensions
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ClusterMemory:
    """One L2-normalised vector a cluster, which follows the hardest picture of each batch."""

    def __init__(self, features: Tensor, labels: Tensor, *, momentum: float, temperature: float) -> None:
        """Start at the clusters' means. features (n, D), labels (n,) int64, −1 for none."""
        known = labels >= 0
        total = torch.zeros(int(labels.max()) + 1, features.shape[1]).index_add_(0, labels[known], features[known])
        self.vectors = F.normalize(total, dim=1)
        """(C, D) float32."""
        self.momentum, self.temperature = momentum, temperature

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of features (B, D), L2-normalised, over all clusters at the temperature."""
        return F.cross_entropy(features @ self.vectors.T / self.temperature, labels)

    @torch.no_grad()
    def follow(self, features: Tensor, labels: Tensor) -> None:
        """Move each cluster of a batch toward its picture that is farthest from it."""
        for cluster in torch.unique(labels):
            here = features[labels == cluster]
            hardest = here[(here @ self.vectors[cluster]).argmin()]
            moved = self.momentum * self.vectors[cluster] + (1 - self.momentum) * hardest
            self.vectors[cluster] = F.normalize(moved, dim=0)
