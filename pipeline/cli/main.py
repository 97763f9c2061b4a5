"""`umbra`: the commands, and how every error ends."""

import json
import os
import sys
import traceback

import click

from pipeline.cli.audit import audit
from pipeline.cli.budget import budget
from pipeline.cli.cancel import cancel
from pipeline.cli.export import export
from pipeline.cli.logs import logs
from pipeline.cli.plan import plan
from pipeline.cli.report import report
from pipeline.cli.resume import resume
from pipeline.cli.runs import runs
from pipeline.cli.status import status
from pipeline.cli.submit import submit
from privacy.errors import UmbraError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="umbra-synth", prog_name="umbra")
def cli() -> None:
    """Synthetic image data sets under differential privacy.

    Exit codes: 0 fine, 1 failed, 2 bad usage or spec, 3 budget refused, 4 integrity broken.
    """


for _command in (
    plan, submit, runs, status, logs, resume, cancel, export, budget, audit, report
):  # fmt: skip
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is a sentence, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = cli.main(arguments, prog_name="umbra", standalone_mode=False)
    except UmbraError as error:
        return _fail(str(error), error.exit_code, as_json)
    except click.ClickException as error:
        return _fail(error.format_message(), 2, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", _INTERRUPTED, as_json)
    except BrokenPipeError:
        # Whoever read the output has enough of it; the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Its text may hold private values; a developer asks for it by name.
        if os.environ.get("UMBRA_TRACEBACK") == "1":
            traceback.print_exc()
        return _fail(
            f"unexpected {type(error).__name__}: this is a fault of Umbra. Set UMBRA_TRACEBACK=1 "
            "to see where (the text may hold private values: do not share it)",
            1,
            as_json,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    click.echo(f"umbra: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
