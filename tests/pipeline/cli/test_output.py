import json
import math
import sys

from pipeline.cli.output import emit, pairs, printable, table


class Terminal:
    """A standard output that says it is a terminal."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        return True


def drawn(capsys, data, show):
    emit(data, False, show)
    return capsys.readouterr().out


def test_json_is_json_whatever_the_numbers(capsys):
    emit({"a": math.inf, "b": [math.nan, 1.5], "c": (-math.inf,), "d": None}, True, None)
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": [None],
        "d": None,
    }


def test_names_are_text_and_nothing_else(capsys):
    name = "[red]a[/] [/b] :dog: [1]"
    out = drawn(capsys, None, lambda console: console.print(f"exported to {name}"))
    assert out == f"exported to {name}\n"
    out = drawn(capsys, None, lambda console: console.print(table(name, [name], [[name]])))
    assert out.count(name) == 3


def test_nothing_is_cut_where_there_is_no_edge(capsys):
    long = "x" * 300
    out = drawn(capsys, None, lambda console: console.print(table("", ["a", "b"], [[long, long]])))
    assert f"{long}   {long}" in out
    out = drawn(capsys, None, lambda console: console.print(pairs("title", {"a": long})))
    assert f"  a  {long}\n" in out


def test_no_colour_without_a_terminal(capsys):
    show = lambda console: console.print(table("title", ["a"], [["b"]]))  # noqa: E731
    assert "\x1b" not in drawn(capsys, None, show)


def test_colours_on_a_terminal_obey_no_color(capsys, monkeypatch):
    def show(console):
        console.print("x", style="red")

    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in drawn(capsys, None, show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in drawn(capsys, None, show)


def test_a_missing_number_is_a_dash(capsys):
    out = drawn(capsys, None, lambda console: console.print(table("", ["a"], [[None]], [0])))
    assert "–" in out and "None" not in out


def test_printable():
    assert printable("a\x1b[2Jé\nb\x00\u202e") == "a\ufffd[2Jé\nb\ufffd\ufffd"
