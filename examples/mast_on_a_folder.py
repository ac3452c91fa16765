"""MAST on a folder of images: a quarter of the embedding is free to keep the hue.

With probability 1/2 the two views of an image have the same hue shift, and are then compared on the
whole embedding; all others are compared on the dimensions that are invariant to hue. The program
`mast-ext pretrain` does this, and more (probes, reports, resuming, many processes); this is the
bare loop.
"""

import argparse
from pathlib import Path

import torch

from mast_ext.augment import AugmentationRecipe, SharedPolicy, Sharing, build_loader
from mast_ext.data import open_source
from mast_ext.losses import AugmentationMasks, MASTLoss
from mast_ext.models import BackboneSpec, Projector, create_backbone, forward_views, save_backbone


def main() -> None:
    """Trains, prints the parts of the loss, and saves the backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with images, in folders of classes or without")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--model", default="resnet_small", help="ours, or any ResNet of timm's")
    parser.add_argument("--out", default="backbone.safetensors", help="where the weights go")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    source = open_source("folder", "train", path=options.data, channels=3, bits=8)
    recipe = AugmentationRecipe(size=options.size, hue=0.5)
    policy = SharedPolicy(recipe, shared={"hue": Sharing(probability=0.5)})
    loader = build_loader(source, policy, batch_size=options.batch_size, workers=1)

    spec = BackboneSpec(options.model, small_images=options.size <= 64)
    backbone, num_features = create_backbone(spec.name, spec.small_images)
    backbone.to(device)
    projector = Projector(num_features, (256, 256, 256)).to(device)
    loss = MASTLoss(AugmentationMasks([0.25], 256)).to(device)
    groups = [
        {"params": [*backbone.parameters(), *projector.parameters()], "weight_decay": 0.01},
        {"params": [*loss.parameters()], "weight_decay": 0.0},  # decay would make masks even
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    for epoch in range(options.epochs):
        for batch in loader.on(device):
            features = forward_views(backbone, batch.images)  # [V, B, F]
            embeddings = projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
            terms = loss(*embeddings, batch.changed)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
        parts = ", ".join(f"{name} {value.item():.3f}" for name, value in terms.logs.items())
        print(f"epoch {epoch}: loss {terms.loss.item():.3f}, {parts}")
    save_backbone(backbone, spec, Path(options.out))


if __name__ == "__main__":
    main()
