"""Teachers: where a model comes from ends here; everything behind asks a Denoiser."""
