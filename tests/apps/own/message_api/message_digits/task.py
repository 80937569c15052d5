"""Model, data and training."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small CNN."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(24 * 2 * 2, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def load_data(partition_id, count, batch_size):
    """Images of one client, normalised to [-1, 1]."""
    digits = load_digits()
    mine = slice(partition_id * count, (partition_id + 1) * count)
    images = torch.tensor(digits.images[mine] / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target[mine])
    return DataLoader(TensorDataset((images - 0.5) / 0.5, labels), batch_size=batch_size, shuffle=True)


def train(net, trainloader, epochs, lr):
    """SGD with momentum; returns the mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(trainloader)
