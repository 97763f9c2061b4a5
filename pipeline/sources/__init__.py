"""Data sources: where private and reference images come from.

A source is a class with its options (a section of the spec, with its own `kind`) and one line in
`Source`.
"""

from typing import Annotated

from pydantic import Field

from pipeline.sources.arrays import DigitsSource, IdxSource, NpzSource
from pipeline.sources.images import FolderSource, ParquetSource

__all__ = ["DigitsSource", "FolderSource", "IdxSource", "NpzSource", "ParquetSource", "Source"]

#: A source section of a spec, discriminated by `kind`.
Source = Annotated[
    DigitsSource | FolderSource | IdxSource | NpzSource | ParquetSource,
    Field(discriminator="kind"),
]
