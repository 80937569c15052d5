"""Model, data and loss."""

from dataclasses import replace

import torch
from torch import nn

from fl_precode.data import load_data
from fl_precode.models import build_model

EVEN, PRIME, WITH_A_LOOP, ABOVE_FOUR = {0, 2, 4, 6, 8}, {2, 3, 5, 7}, {0, 6, 8, 9}, {5, 6, 7, 8, 9}
CLASSES = (EVEN, PRIME, WITH_A_LOOP, ABOVE_FOUR)

criterion = nn.BCEWithLogitsLoss()


def load_inputs(images):
    """Shape and normalisation of the images, with the four classes that each may have or not."""
    return replace(load_data(images).inputs, classes=len(CLASSES))


def network(inputs):
    """Two hidden layers; one score for each class."""
    return build_model("mlp", inputs, seed=0)


def load_client(images, partition_id, count):
    """A client's images in [0, 1] and rows of zeros and ones: what is true of each image's number."""
    train = load_data(images).train
    spread = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    pixels, numbers = train.batch(spread[partition_id * count : (partition_id + 1) * count])
    return pixels, torch.tensor([[float(number in one) for one in CLASSES] for number in numbers.tolist()])
