"""Depth, normals and intrinsic images by the published protocols, through the estimators that the robot runs.

`protocols` says what is measured on what, `dataset` reads it, `depth`, `normals` and `intrinsics` measure, `run` goes
through the images, and `report` puts the numbers beside the published ones. Start with

    python -m trainer evaluate --help
"""
