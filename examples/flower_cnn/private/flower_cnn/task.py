"""The model, the images and the training: nothing here knows of Flower."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, SIDE, PER_USER = 10, 8, 40


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Linear(16 * (SIDE // 4) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits, shape [images, classes]."""
        hidden = F.max_pool2d(F.relu(self.first(images)), 2)
        hidden = F.max_pool2d(F.relu(self.second(hidden)), 2)
        return self.out(hidden.flatten(1))


def images_of(seed: int, number: int = PER_USER) -> tuple[Tensor, Tensor]:
    """Returns images, shape [number, 1, 8, 8], and their classes: noisy copies of ten fixed drawings."""
    drawings = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(seed + 1)
    classes = torch.randint(CLASSES, (number,), generator=own)
    return drawings[classes] + torch.randn(number, 1, SIDE, SIDE, generator=own), classes


def train(net: Net, images: Tensor, classes: Tensor, learning_rate: float, epochs: int = 2) -> float:
    """Trains in place; returns the last loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for batch in torch.arange(len(images)).split(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images[batch]), classes[batch])
            loss.backward()
            optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(net: Net, images: Tensor, classes: Tensor) -> float:
    """Returns the share of images whose class is found."""
    return float((net(images).argmax(1) == classes).float().mean())
