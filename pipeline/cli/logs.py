"""`umbra logs`: what a run told, which is nothing private."""

import json
import time
from collections.abc import Iterator

import click

from pipeline.cli.output import json_option, printable, while_read
from pipeline.home import Home
from pipeline.runs.directory import RunDirectory
from pipeline.runs.status import run_status

_SECONDS = 0.5
_ASK_SECONDS = 2.0  # where a cluster is asked, which is dearer than a look at a file


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
@json_option
def logs(run_id: str, follow: bool, as_json: bool) -> None:
    """Print the log of RUN: stages and counts. With --json one object a line."""
    run = Home.locate().run(run_id)
    with while_read():
        for line in _lines(run, follow):
            text = printable(line)
            click.echo(json.dumps({"line": text}, ensure_ascii=False) if as_json else text)


def _lines(run: RunDirectory, follow: bool) -> Iterator[str]:
    """Yield whole lines; the last one may lack its end, or say why the run never wrote any."""
    read, begun = 0, ""
    pause = _ASK_SECONDS if follow and run.state().job else _SECONDS
    while True:
        # Asked before reading: what a run writes just before it ends is not lost.
        ended = not (follow and run_status(run).is_active)
        if run.log_path.exists():
            with run.log_path.open("rb") as log:
                log.seek(read)
                new = log.read()
            # Bytes up to a line's end, so that no character is cut in two.
            whole = new[: new.rfind(b"\n") + 1]
            read += len(whole)
            begun = new[len(whole) :].decode(errors="replace")
            yield from whole.decode(errors="replace").splitlines()
        if ended:
            if begun:
                yield begun
            if not read and not begun and (now := run_status(run)).reason:
                yield f"{run.run_id} is {now.status}: {now.reason}"
            return
        time.sleep(pause)
