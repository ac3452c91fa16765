"""SimCLR in plain PyTorch: the only line that is not torch or torchvision is the loss."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from mast_ext.losses import NTXentLoss


class Views:
    """Several augmented views of an image, ``[V, 3, S, S]``."""

    def __init__(self, views: int, size: int) -> None:
        self.views = views
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __call__(self, image):
        return torch.stack([self.augment(image) for _ in range(self.views)])


def main() -> None:
    """Trains, and prints the loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with a folder of images per class")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    images = ImageFolder(options.data, Views(2, options.size))
    loader = DataLoader(
        images, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers
    )
    model = resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    model.to(device)
    criterion = NTXentLoss(temperature=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for epoch in range(options.epochs):
        for views, _ in loader:  # [B, 2, 3, S, S]
            first, second = model(views.flatten(0, 1).to(device)).unflatten(0, (-1, 2)).unbind(1)
            loss = criterion(first, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
