"""Models of the gallery: every one in a size worth measuring, and smaller by keywords."""

from benchmarks.gallery_models import derived, graphs, language, recurrent, science, vision
from benchmarks.gallery_models.base import GALLERY, Model

__all__ = ["GALLERY", "Model", "derived", "graphs", "language", "recurrent", "science", "vision"]
