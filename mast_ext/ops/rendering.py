"""The operators that render views, on the CPU alone; schemas in library.cpp.

Nothing traces or differentiates them: they have no shape-only kernels and no derivatives.
"""

import torch

new_pixels = torch.ops.mast_ext.new_pixels.default
resized_crops = torch.ops.mast_ext.resized_crops.default
photometry = torch.ops.mast_ext.photometry.default
