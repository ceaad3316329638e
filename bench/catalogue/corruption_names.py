"""The names of the common corruptions, in the order of CIFAR-10-C's authors; `bench.data.corruptions` makes them."""

COMMON_CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The fifteen that RobustBench averages."""
ALL_CORRUPTIONS = (*COMMON_CORRUPTIONS, "speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Nineteen: with the four that CIFAR-10-C holds for validation."""
CORRUPTIONS_3D = (
    "near_focus",
    "far_focus",
    "bit_error",
    "color_quant",
    "flash",
    "fog_3d",
    "h265_abr",
    "h265_crf",
    "iso_noise",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
)
"""The twelve of ImageNet-3DCC (Kar et al. 2022, https://arxiv.org/abs/2203.01441) that RobustBench averages."""
