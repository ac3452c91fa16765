"""What hard views gain on images: plain, with hard views, plain with as many image forwards.

    python benchmarks/train/hard_views.py --path DIR --jobs 2 --threads 1 \
        --report benchmarks/results/hard-views-cifar10.md

trains on a folder of images with train/ and test/ (CIFAR-10) and writes the tables of `gains.py`.
An interrupted call goes on where it stopped. ``--treatments`` and ``--methods`` choose parts of it,
the controls of Ferreira et al. (ICLR 2025) among them: views to choose from, the crops' scale,
selection at every k-th step; and selection that costs less time, beside as much more training.
"""

from gains import Treatment, main

HARD = "--hard_views.views=4"

TREATMENTS = {
    "4 views": Treatment((HARD, "--hard_views.differ=all"), against_forwards=True),
    "8 views": Treatment(("--hard_views.views=8",)),
    "4 views at every 3rd step": Treatment((HARD, "--hard_views.every=3")),
    "4 views, frozen": Treatment((HARD, "--hard_views.mode=frozen")),
    "4 views, a quarter of the images": Treatment(
        (HARD, "--hard_views.fraction=0.25"), unfit=("dino",)
    ),
    "4 views after 2 epochs": Treatment((HARD, "--hard_views.warmup=2")),
    "4 views, scored at 16 pixels": Treatment((HARD, "--hard_views.size=16")),
    "4 views of two colors": Treatment((HARD, "--hard_views.differ=geometry")),
    "a quarter longer": Treatment((), length=1.25),  # about what the selection at 16 pixels costs
    "crops from 0.4": Treatment(("--augment.crop_scale=[0.4,1.0]",)),
    "4 views, crops from 0.4": Treatment((HARD, "--augment.crop_scale=[0.4,1.0]")),
}

METHODS = ("simsiam", "simclr", "byol", "dino", "vicreg", "mast")

if __name__ == "__main__":
    assert __doc__
    main("Hard views", TREATMENTS, METHODS, "runs/hard-views", __doc__.splitlines()[0])
