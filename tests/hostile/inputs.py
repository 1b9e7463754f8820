"""All hostile inputs: which command gets which file, and what it should answer."""

from __future__ import annotations

from tests.hostile import broken_files, broken_settings
from tests.hostile.harness import Input


def all_inputs() -> list[Input]:
    sources = (
        broken_files.image_inputs,
        broken_files.click_inputs,
        broken_files.checkpoint_inputs,
        broken_files.manifest_inputs,
        broken_files.dicom_inputs,
        broken_settings.config_inputs,
        broken_settings.argument_inputs,
        broken_settings.disk_inputs,
        broken_files.mixup_inputs,
        broken_settings.name_inputs,
    )
    return [given for source in sources for given in source()]
