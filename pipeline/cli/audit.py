"""`umbra audit`: recompute, verify, explain, and attack."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import audit_view
from pipeline.cli.output import emit, json_option
from pipeline.home import Home
from pipeline.progress import Progress, SilentProgress, show_progress
from privacy.errors import IntegrityBroken, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.audit.ledger import Audit
    from pipeline.audit.release import ReleaseAudit
    from pipeline.runs.directory import RunDirectory


class _Verbs(click.Group):
    """A group whose verb may be left out: without one, the arguments are those of `ledger`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        words = [word for word in args if not word.startswith("-")]
        if words and words[0] in self.commands:
            args.remove(words[0])
            args = [words[0], *args]
        elif args[:1] not in (["-h"], ["--help"]):
            args = ["ledger", *args]
        return super().parse_args(context, args)


@click.group(cls=_Verbs, subcommand_metavar="[VERB] [RUN|EXPORT]")
def audit() -> None:
    """Audit the ledger, a RUN or an EXPORT folder, and what ships; exit code 4 if it is broken.

    \b
    umbra audit [RUN|EXPORT] [--json]   the same as `umbra audit ledger`
    umbra audit RUN --empirical         all four verbs about a run

    A folder that is called like a verb is given as ./run.
    """


@audit.command()
@click.argument("subject", metavar="[RUN|EXPORT]", required=False)
@click.option(
    "--public-key",
    metavar="HEX|FILE",
    help="The key that the ledger must be signed by, as you know it from elsewhere.",
)
@click.option("--empirical", is_flag=True, help="Then the verbs mechanism, run and release, too.")
@json_option
def ledger(subject: str | None, public_key: str | None, empirical: bool, as_json: bool) -> int:
    """Check chain, signatures, heads, rules and exports, and compute every ε again.

    Every ε is computed from the raw rows by code that admitted nothing.
    """
    from pipeline.audit.ledger import audit as perform

    home = Home.locate()
    run = _empirical_run(home, subject) if empirical else None
    found = perform(home, subject, public_key)
    if run is not None and found.ok:
        return _empirical(home, run, found, as_json)
    emit(found.to_dict(), as_json, lambda console: audit_view.show_ledger(console, found))
    if run is not None:
        # The other audits rest on the ledger.
        click.echo("umbra: the ledger's audit failed, so nothing else was audited", err=True)
    return _code(found.ok)


@audit.command()
@click.argument("subject", metavar="[SPEC|RUN]", required=False)
@click.option("--trials", type=click.IntRange(min=1), help="How often each step is run.")
@json_option
def mechanism(subject: str | None, trials: int | None, as_json: bool) -> int:
    """Run the step that ships on toy data: a lower bound on its ε, and the laws it has to follow.

    With the q, σ, C and K of a SPEC or a RUN, or of a default. Opens no data.
    """
    from pipeline.audit.mechanism import audit_step

    progress = _progress(as_json)
    found = audit_step(Home.locate(), subject, progress, trials)
    emit(found.to_record(), as_json, lambda console: audit_view.show_mechanism(console, found))
    return _code(not found.broken)


@audit.command("run")
@click.argument("run_id", metavar="RUN")
@click.option("--canaries", type=click.IntRange(min=1), help="How many, M.")
@click.option("--guesses", type=click.IntRange(min=1), help="How many are guessed, R.")
@json_option
def run_(run_id: str, canaries: int | None, guesses: int | None, as_json: bool) -> int:
    """Train the recipe of RUN again, with canaries among its released images, and guess them.

    Opens no private image and spends nothing; takes as long as the training did. Gives a lower
    bound on ε and the largest that it could have given.
    """
    from pipeline.audit.run import audit_training

    home = Home.locate()
    found = audit_training(home, _run(home, run_id), _progress(as_json), canaries, guesses)
    emit(found.to_dict(), as_json, lambda console: audit_view.show_run(console, found))
    return _code(found.ok)


@audit.command()
@click.argument("run_id", metavar="RUN")
@json_option
def release(run_id: str, as_json: bool) -> None:
    """Look for copies and attack membership in the images of RUN; opens its private images.

    The findings are internal. No distance passes or fails.
    """
    found = _release(_run(Home.locate(), run_id), _progress(as_json))
    emit(found.to_dict(), as_json, lambda console: audit_view.show_release(console, found))


def _empirical(home: Home, run: "RunDirectory", found: "Audit", as_json: bool) -> int:
    from pipeline.audit.mechanism import audit_step
    from pipeline.audit.run import audit_training

    progress = _progress(as_json)
    step = audit_step(home, run.run_id, progress)
    trained = audit_training(home, run, progress)
    released = _release(run, progress) if run.spec().data.holdout is not None else None
    ok = trained.ok and not step.broken
    facts: dict[str, Any] = {
        **found.to_dict(),
        "ok": ok,
        "mechanism": step.to_record(),
        "run": trained.to_dict(),
        "release": None if released is None else released.to_dict(),
    }

    def show(console: "Console") -> None:
        audit_view.show_ledger(console, found)
        audit_view.show_mechanism(console, step)
        audit_view.show_run(console, trained)
        if released is None:
            console.print("Note: the run names no data.holdout, so its release was not audited.")
        else:
            audit_view.show_release(console, released)

    emit(facts, as_json, show)
    return _code(ok)


def _empirical_run(home: Home, subject: str | None) -> "RunDirectory":
    from pipeline.audit.release import require_release

    if subject is None:
        raise InvalidRequest("--empirical audits one run: name it, `umbra audit RUN --empirical`")
    run = _run(home, subject)
    if run.spec().data.holdout is not None:
        require_release(run)  # refuse now what would be refused after the training
    return run


def _run(home: Home, subject: str) -> "RunDirectory":
    from pipeline.audit.ledger import find_run

    run = find_run(home, subject)
    if run is None:
        raise InvalidRequest(f"{subject} is not a run: expected a run's id or its folder")
    return run


def _release(run: "RunDirectory", progress: Progress) -> "ReleaseAudit":
    from pipeline.audit.release import audit_release, require_release

    require_release(run)
    warning = f"opening the private images of {run.run_id}: the findings stay in its internal/"
    click.echo(warning, err=True)
    return audit_release(run, progress)


def _progress(as_json: bool) -> Progress:
    return SilentProgress() if as_json else show_progress()


def _code(ok: bool) -> int:
    return 0 if ok else IntegrityBroken.exit_code
