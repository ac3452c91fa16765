"""What EquiMod gains on images: plain, with it, plain with as many image forwards, hard views too.

    python benchmarks/train/equimod.py --path DIR --jobs 2 --threads 1 \
        --report benchmarks/results/equimod-cifar10.md

trains on a folder of images with train/ and test/ (CIFAR-10) and writes the tables of `gains.py`.
An interrupted call goes on where it stopped.
"""

from gains import Treatment, main

EQUIMOD = "--equimod.weight=1"

TREATMENTS = {
    "EquiMod": Treatment((EQUIMOD,), against_forwards=True),
    "EquiMod with hard views": Treatment((EQUIMOD, "--hard_views.views=4")),
}

METHODS = ("simclr", "byol")

if __name__ == "__main__":
    assert __doc__
    main("EquiMod", TREATMENTS, METHODS, "runs/equimod", __doc__.splitlines()[0])
