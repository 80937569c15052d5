"""A vision transformer whose backbone is frozen and the same everywhere; only the head is trained."""

import torch
from sklearn.datasets import load_digits
from torch import nn


class Vit(nn.Module):
    """Patches, two encoder layers, the mean of the tokens, a head."""

    def __init__(self, num_classes, width=32):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.heads = nn.Sequential(nn.Linear(16 * width, num_classes))

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        return self.heads(tokens.flatten(1))


def get_model(num_classes):
    """The pretrained backbone, known to everyone, and a new head; everything frozen but the head."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(7)
    model = Vit(num_classes)
    torch.random.set_rng_state(generator)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    return model


def load_data(partition_id, count):
    """Images and labels of one client."""
    digits = load_digits()
    mine = slice(partition_id * count, (partition_id + 1) * count)
    return torch.tensor(digits.images[mine] / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target[mine])


def train(model, images, labels, lr):
    """One step of SGD over every parameter; only the head moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
