"""The home that each kind of fault falls into."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.pipeline.faults.small_runs import Site, declared
from tests.postgres import NoPostgres, running_postgres


@contextmanager
def sites(kinds: Sequence[str]) -> Iterator[dict[str, Site]]:
    """Make, for the block, a home for each kind of fault.

    A "database" can only crash where a server keeps the ledger; the other faults share a home
    whose ledger is a file. Without PostgreSQL there is no such home, and a line says so.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="umbra-faults-"))
        places: dict[str, Site] = {}
        if "database" in kinds:
            try:
                server = stack.enter_context(running_postgres())
                places["database"] = _made(stack, declared(Path(folder) / "database", server))
            except NoPostgres as reason:
                print(f"no database will crash: {reason}", flush=True)
        if others := [kind for kind in kinds if kind != "database"]:
            places |= dict.fromkeys(others, _made(stack, declared(Path(folder) / "file")))
        yield places


def _made(stack: ExitStack, site: Site) -> Site:
    stack.callback(site.close)
    return site
