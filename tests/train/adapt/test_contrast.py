"""The memory of cluster means and the loss against it: hand-worked cases, and a cross-entropy in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dpm_edge.train.adapt.contrast import ClusterMemory


def test_memory_starts_at_the_mean_of_each_cluster() -> None:
    features = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0]]), dim=1)
    memory = ClusterMemory(features, torch.tensor([0, 0, 1, -1]), momentum=0.1, temperature=0.05)
    torch.testing.assert_close(memory.vectors, torch.tensor([[2**-0.5, 2**-0.5], [0.0, -1.0]]))


def test_the_loss_is_cross_entropy_over_the_clusters() -> None:
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(6, 4, generator=draw), dim=1)
    memory = ClusterMemory(features, torch.tensor([0, 0, 1, 1, 2, 2]), momentum=0.1, temperature=0.5)
    logits = features.double() @ memory.vectors.double().T / 0.5
    wanted = (torch.logsumexp(logits, 1) - logits[torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])]).mean()
    torch.testing.assert_close(
        memory.loss(features, torch.tensor([0, 0, 1, 1, 2, 2])).double(), wanted, atol=1e-6, rtol=0
    )


def test_memory_follows_the_hardest_picture() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    memory = ClusterMemory(features, torch.tensor([0, 0]), momentum=0.5, temperature=0.05)
    memory.follow(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(memory.vectors, torch.tensor([[2**-0.5, 2**-0.5]]))
