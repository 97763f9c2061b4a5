"""Data sources: where private and reference images come from.

A source is one file with its options (a section of the spec, with its own `kind`) and one line in
`Source`.
"""

from typing import Annotated

from pydantic import Field

from pipeline.sources.base import SourceOptions
from pipeline.sources.digits import DigitsSource
from pipeline.sources.folder import FolderSource
from pipeline.sources.idx import IdxSource
from pipeline.sources.npz import NpzSource
from pipeline.sources.parquet import ParquetSource

__all__ = ["Source", "SourceOptions"]

#: A source section of a spec, discriminated by `kind`.
Source = Annotated[
    DigitsSource | FolderSource | IdxSource | NpzSource | ParquetSource,
    Field(discriminator="kind"),
]
