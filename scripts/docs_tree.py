"""MkDocs hook: the site has the repository's own tree, so that relative links hold in both."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("*.md", "docs/**/*", "configs/**/*.yaml", "sammed3d_ft/model/shipped/*.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted(path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file())
    ours = [File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in paths]
    return Files([*theme, *ours])
