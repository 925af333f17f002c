"""The paper's first experiments run on small checkpoints."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from family_checkpoints import FAMILY, write_family_checkpoint  # noqa: E402
from trainer import experiments  # noqa: E402
from trainer.samples import write_sample  # noqa: E402
from training import scene  # noqa: E402


def test_experiments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "STEPS", (1, 2))
    for seed in range(2):
        write_sample(tmp_path / "scenes" / "held_out", scene(seed, (96, 128)))
    row = next(row for row in FAMILY if row.name == "marigold-depth-v1-1")
    diffusion = write_family_checkpoint(tmp_path, row, (64, 64))
    numbers = tmp_path / "numbers.json"
    arguments = ["--checkpoint", "nano", "--diffusion", diffusion, "--scenes", tmp_path / "scenes", "--count", 2]
    threads = torch.get_num_threads()
    try:
        assert experiments.main([*map(str, arguments), "--steps", "40", "--json", str(numbers)]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(numbers.read_text())
    assert 0 < found["reconstruction"] < 4
    before, after = found["overfitting"]
    assert after < 0.9 * before
    assert set(found["timesteps"]) == {"leading", "trailing"}
    assert "| trailing |" in capsys.readouterr().out


def test_the_spacing_of_timesteps_makes_other_maps(tmp_path, monkeypatch):
    """Random weights draw no depth that could be scored, so that the maps themselves are compared."""
    monkeypatch.setattr(experiments, "STEPS", (1,))
    write_sample(tmp_path / "scenes" / "held_out", scene(0, (96, 128)))
    row = next(row for row in FAMILY if row.name == "marigold-depth-v1-1")
    diffusion = str(write_family_checkpoint(tmp_path, row, (64, 64)))
    maps = []
    real = experiments.evaluate_frame
    monkeypatch.setattr(experiments, "evaluate_frame", lambda frame, m, space: maps.append(m) or real(frame, m, space))
    experiments.timesteps(diffusion, tmp_path / "scenes", 1)
    leading, trailing = maps
    assert np.abs(leading - trailing).max() > 1e-3
