"""One defense per file, found by file name."""

FAMILIES = {
    "st": "no adversarial training",
    **dict.fromkeys(("at", "dio", "fsr", "hat", "ikl", "mart", "trades"), "multi-step"),
    **dict.fromkeys(("adv-dpnp", "at-he", "drp", "oc", "pcl"), "prototype"),
}
"""Of the files that are older than `Defense.family`. Rows record their digests, so they stay as they are; a later file
says its family itself."""
