"""Dense metric depth from one camera and a sparse LiDAR, with Marigold-family networks."""

__version__ = "0.1.0"
