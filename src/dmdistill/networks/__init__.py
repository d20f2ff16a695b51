"""Networks: EDM's U-Nets, wrappers of diffusers' networks, a small classifier, LoRA."""
