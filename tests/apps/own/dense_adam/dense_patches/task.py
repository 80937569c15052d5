"""A DenseNet as small as one can be: dense blocks with batch normalisation, a transition, a classifier."""

import torch
from skimage.data import camera
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def stage(inputs, outputs, kernel):
    """Normalise, cut off, convolve: the order of DenseNet."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), convolution)


class DenseBlock(nn.Module):
    """Each layer sees what all before it made."""

    def __init__(self, inputs, layers, growth):
        super().__init__()
        self.layers = nn.ModuleList(stage(inputs + i * growth, growth, 3) for i in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseNet(nn.Module):
    """DenseNet121's shape with two blocks of two layers."""

    def __init__(self, classes, width=8, growth=6):
        super().__init__()
        self.conv0 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.block1 = DenseBlock(width, 2, growth)
        self.transition = nn.Sequential(stage(width + 2 * growth, 10, 1), nn.AvgPool2d(2))
        self.block2 = DenseBlock(10, 2, growth)
        self.norm = nn.BatchNorm2d(10 + 2 * growth)
        self.out = nn.Linear(10 + 2 * growth, classes)

    def forward(self, x):
        x = self.block2(self.transition(self.block1(self.conv0(x))))
        return self.out(torch.relu(self.norm(x)).mean((2, 3)))


def load_model():
    """The app's model, as MONAI's example names its own."""
    return DenseNet(classes=6)


def load_data(partition_id, count, batch_size):
    """Patches of one photograph, 16x16 in [0, 1]."""
    photograph = torch.tensor(camera() / 255, dtype=torch.float32)
    patches = photograph.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 1, 16, 16)[100::37]
    mine = slice(partition_id * count, (partition_id + 1) * count)
    labels = torch.arange(len(patches))[mine] % 6
    return DataLoader(TensorDataset(patches[mine], labels), batch_size=batch_size, shuffle=True)


def train(model, loader, epoch_num):
    """Adam, with the number of epochs in the code."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(epoch_num):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
