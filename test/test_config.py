"""Settings: an instance that exists has been checked; every refusal names the setting, its value and the way out."""

import dataclasses

import pytest

from marigold_ros.config import Config, FitConfig, ModelConfig, RangeConfig, Unusable, settings, with_settings


def test_the_defaults_pass_their_own_checks():
    names = [name for name, _, _ in settings(Config())]
    assert len(names) == len(set(names)) > 20


def test_every_setting_is_described_and_belongs_to_its_section():
    for name, field, value in settings(Config()):
        assert len(field.metadata["doc"]) > 10, name
        assert value == field.default, name
    for field in dataclasses.fields(Config()):
        assert field.name == getattr(Config(), field.name).SECTION


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("model.engine", "cuda", "'openvino'"),
        ("model.width", 100, "nearest: 96"),
        ("model.width", 384, "give both"),
        ("model.threads", -1, "between 0 and"),
        ("model.threads", 2.5, "type int"),
        ("model.checkpoint", 7, "type str"),
        ("range.max_age_s", float("nan"), "number"),
        ("range.max_age_s", -0.1, "between 0.0 and"),
        ("range.min_depth_m", 100.0, "less than range.max_depth_m"),
        ("range.translation_m", (1.0, 2.0), "3 finite numbers"),
        ("range.translation_m", (1.0, 2.0, float("inf")), "3 finite numbers"),
        ("range.rotation_xyzw", (0.0, 0.0, 0.0, 2.0), "length 1"),
        ("node.autostart", 1, "type bool"),
        ("fit.no_such", 1, "config/depth.yaml"),
        ("nonsense", 1, "config/depth.yaml"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_way_out(name, value, way_out):
    with pytest.raises(Unusable) as refusal:
        with_settings(Config(), {name: value})
    assert name in str(refusal.value)
    assert way_out in str(refusal.value)


def test_a_fixed_frame_needs_tf():
    with pytest.raises(Unusable, match=r"range\.fixed_frame='odom'.*needs tf2"):
        with_settings(Config(), {"range.extrinsic": "static", "range.fixed_frame": "odom"})
    with_settings(Config(), {"range.fixed_frame": "odom"})


def test_changes_reach_their_section_and_leave_the_rest():
    changed = with_settings(Config(), {"model.width": 640, "model.height": 192, "range.max_age_s": 1})
    assert (changed.model.width, changed.model.height) == (640, 192)
    assert changed.range.max_age_s == 1.0
    assert isinstance(changed.range.max_age_s, float)
    assert changed.fit == FitConfig()
    assert changed.range.translation_m == RangeConfig().translation_m


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().threads = 3
