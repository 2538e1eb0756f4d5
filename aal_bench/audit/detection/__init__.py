"""Detectors: nothing in an image stands or falls, so the checks look at each image's loss."""
