"""Model, data and training. Where Lightning is not installed, a module of the same shape stands in for it."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

try:
    from pytorch_lightning import LightningModule
except ImportError:

    class LightningModule(nn.Module):
        """Has what this app uses of Lightning's."""

        def log(self, name, value):
            """Log nothing."""


def network():
    """The network that the module trains."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 10))


class LitClassifier(LightningModule):
    """The network as ``self.model``: every name begins with ``model.``."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        """Loss of one batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def load_data(partition_id, count):
    """Images of one client."""
    digits = load_digits()
    mine = slice(partition_id * count, (partition_id + 1) * count)
    images = torch.tensor(digits.images[mine] / 16, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(images, torch.tensor(digits.target[mine])), batch_size=32, shuffle=True)


def fit(model, loader, max_epochs):
    """What a trainer does: the module's own steps and optimiser."""
    optimizer = model.configure_optimizers()
    for _ in range(max_epochs):
        for batch_idx, batch in enumerate(loader):
            optimizer.zero_grad()
            model.training_step(batch, batch_idx).backward()
            optimizer.step()
