"""A plain loop that trains on the hardest pair of several views (Ferreira et al., ICLR 2025)."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from mast_ext.functional import gather_views
from mast_ext.losses import HardViewSelector, NTXentLoss


def main() -> None:
    """Trains, and prints losses and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with a folder of images per class")
    parser.add_argument("--views", type=int, default=4, help="to choose the two from")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    augment = v2.Compose(
        [
            v2.RandomResizedCrop(options.size, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def several(image):
        return torch.stack([augment(image) for _ in range(options.views)])

    loader = DataLoader(
        ImageFolder(options.data, several),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
    )
    model = resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    model.to(device)
    criterion, selector = NTXentLoss(temperature=0.2), HardViewSelector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for epoch in range(options.epochs):
        for images, _ in loader:
            views = images.transpose(0, 1).to(device)  # [V, B, 3, S, S]
            with torch.no_grad():
                embeddings = model(views.flatten(0, 1)).unflatten(0, views.shape[:2])
                index, score = selector(criterion.pair_losses(embeddings))
            pair = gather_views(views, index)  # [2, B, 3, S, S]
            first, second = model(pair.flatten(0, 1)).chunk(2)
            loss = criterion(first, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, of the hardest pairs {score.mean():.3f}")


if __name__ == "__main__":
    main()
