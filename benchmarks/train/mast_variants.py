"""MAST, changes of it, and other ways to the same end: what the tables of MAST compare."""

from runs import Variant

LESS_HUE = "{hue: {share: 0.375, freed: 0.125}, geometry: {start: 0.3333333333333333}}"
UNMASKED = "{hue: {}, geometry: {start: 0.3333333333333333}}"  # the same views, nothing freed

VARIANTS = {
    "VICReg": Variant(("--method=vicreg",)),
    "SimCLR": Variant(("--method=simclr",)),
    "MAST": Variant(("--method=mast",)),
    "MAST, fixed masks": Variant(("--method=mast", "--mast.masks=blocks")),
    "MAST without masks": Variant(("--method=mast", f"--mast.shared={UNMASKED}")),
    "MAST, hue shared by 3 in 8": Variant(("--method=mast", f"--mast.shared={LESS_HUE}")),
    "MAST with uncertainty": Variant(("--method=mast", "--mast.uncertainty=true")),
    "separate heads (LooC)": Variant(("--method=looc",)),
    "VICReg + AugSelf": Variant(("--method=augself",)),
    # EquiMod's plain view of every image is a third one.
    "VICReg + EquiMod": Variant(("--method=vicreg", "--equimod.weight=1"), length=2 / 3),
}
"""By its name in the tables."""
