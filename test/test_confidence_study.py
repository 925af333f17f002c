"""The study of uncertainties: from frames to table, numbers and figure."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from marigold_ros.checkpoints import describe
from marigold_ros.config import Unusable
from small_checkpoint import write_small_checkpoint
from trainer.confidence import MEASURES, as_json, figure, relative_ause, study, table
from trainer.frames import Frame


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("study") / "small")


@pytest.fixture
def frame():
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    depth_m = np.linspace(2.0, 20.0, 96, dtype=np.float32)[:, None].repeat(128, 1)
    depth_m[:8] = np.nan
    return Frame("room 0", cv2.resize(noise, (128, 96)), depth_m)


def test_every_candidate_is_scored_on_every_set(checkpoint, frame, tmp_path):
    results = study(checkpoint, None, [frame, replace(frame, name="street 0")])
    assert set(results) == {"room", "street"}
    for measure in MEASURES:
        assert relative_ause(results["room"], measure, "oracle") == 0.0
        assert relative_ause(results["room"], measure, "constant") == 1.0
        assert relative_ause(results["room"], measure, "random") == pytest.approx(1.0, abs=0.1)
    rows = table(results).splitlines()
    assert [row for row in rows if row.startswith("| channels, std |")]
    assert len({row.count("|") for row in rows}) == 1
    values = json.loads(json.dumps(as_json(results, describe(checkpoint)), allow_nan=False))
    assert values["sets"]["room"]["frames"] == ["room 0"]
    figure(results, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_frames_without_depth_or_none_at_all_are_named(checkpoint, frame):
    empty = replace(frame, depth_m=np.full_like(frame.depth_m, np.nan))
    with pytest.raises(Unusable, match="frame room 0: depth is known at 0 pixels"):
        study(checkpoint, None, [empty])
    with pytest.raises(Unusable, match="--scenes"):
        study(checkpoint, None, [])
