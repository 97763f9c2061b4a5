"""Data sources: where private and reference images come from.

A source is one file with its options (a section of the spec, told apart by `kind`) and one line
in `SOURCES`.
"""

from typing import Annotated

from pydantic import Field

from pipeline.sources.base import ImageSet, SourceOptions
from pipeline.sources.digits import DigitsSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.idx import IdxSource
from pipeline.sources.npz import NpzSource
from pipeline.sources.parquet import ParquetSource

__all__ = ["SOURCES", "DigitsSource", "FolderSource", "IdxSource", "ImageSet", "NpzSource"]
__all__ += ["ParquetSource", "Source", "SourceOptions"]

SOURCES: dict[str, type[SourceOptions]] = {
    "digits": DigitsSource,
    "folder": FolderSource,
    "idx": IdxSource,
    "npz": NpzSource,
    "parquet": ParquetSource,
}

#: A source section of a spec, discriminated by `kind`.
Source = Annotated[
    DigitsSource | FolderSource | IdxSource | NpzSource | ParquetSource,
    Field(discriminator="kind"),
]
