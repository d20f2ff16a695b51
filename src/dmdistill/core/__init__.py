"""The mathematics of distribution matching distillation. Imports torch and nothing else."""
