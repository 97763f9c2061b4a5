"""`umbra status`: where a run stands."""

import click
from rich.console import Console

from pipeline.cli.output import emit, json_option, pairs
from pipeline.cli.runs import outward_status
from pipeline.home import Home
from pipeline.progress import duration

_ADVICE = {
    "created": "its budget is reserved; begin it with `umbra resume {run}`",
    "interrupted": "its process died; go on with `umbra resume {run}`",
    "failed": "go on with `umbra resume {run}` when the reason is mended",
    "cancelled": "go on with `umbra resume {run}`",
    "running": "follow it with `umbra logs {run}`, stop it with `umbra cancel {run}`",
    "done": "take the images with `umbra export {run} DIR`",
}


@click.command()
@click.argument("run_id", metavar="RUN")
@json_option
def status(run_id: str, as_json: bool) -> None:
    """Say where RUN stands, why, and what can be done."""
    run = Home.locate().run(run_id)
    state = run.state()
    now = outward_status(state)
    advice = _ADVICE[now].format(run=run.run_id)
    done = {record.name: duration(record.seconds) for record in state.stages}
    facts = {**state.model_dump(mode="json"), "status": now, "advice": advice}

    def show(console: Console) -> None:
        console.print(
            pairs(
                f"{run.run_id}: {now}",
                {
                    "stages done": ", ".join(f"{n} ({t})" for n, t in done.items()) or "none",
                    **({"stage": state.stage} if state.stage else {}),
                    "attempts": state.attempt,
                    **(
                        {"reason" if now != "done" else "note": state.message}
                        if state.message
                        else {}
                    ),
                    "next": advice,
                    "folder": str(run.path),
                },
            )
        )

    emit(facts, as_json, show)
