"""Gymnasium environments, one self-contained file each: gymnasium and numpy only, nothing of dtrl."""
