"""The gallery: whom one has seen, and the exact search among them under the masked metric. Needs only numpy."""

from dpm_edge.gallery.gallery import Gallery
from dpm_edge.gallery.matches import Matches

__all__ = ["Gallery", "Matches"]
