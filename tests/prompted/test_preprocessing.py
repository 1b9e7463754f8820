"""Preprocessing settings: written and read back, defaults, and what is refused."""

from __future__ import annotations

import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.prompted.preprocessing import Preprocessing


def test_round_trip_and_defaults():
    settings = Preprocessing(("PT", "CT"), 3.0, {"PT": (0, 20)})
    assert settings.clip == {"PT": (0.0, 20.0), "CT": (-1000.0, 1000.0)}
    assert Preprocessing.from_json(settings.to_json()) == settings
    assert Preprocessing() == Preprocessing(("PT",), 1.5, {"PT": (0.0, 50.0)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "modalities, spacing_mm and clip"),
        ("[]", "modalities, spacing_mm and clip"),
        ('{"modalities": ["PT"]}', "modalities, spacing_mm and clip"),
        ('{"modalities": ["PT"], "spacing_mm": 0, "clip": {}}', "positive"),
        ('{"modalities": ["PT"], "spacing_mm": 1, "clip": {"PT": [5, 5]}}', "low < high"),
        ('{"modalities": ["PT"], "spacing_mm": 1, "clip": {"CT": [0, 5]}}', "not among the modalities PT"),
        ('{"modalities": ["MR"], "spacing_mm": 1, "clip": {}}', "no clipping range"),
        ('{"modalities": ["PT", "PT"], "spacing_mm": 1, "clip": {}}', "distinct"),
    ],
)
def test_wrong_settings_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        Preprocessing.from_json(text)
