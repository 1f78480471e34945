"""The README and the help say what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import click
import pytest

from segx.cli.main import cli
from segx.results.store import load_results
from segx.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name: str) -> None:
    help_text = cli.commands[name].help or ""
    assert f"segx {name}" in help_text
    assert f"segx {name}" in README


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_help(name: str) -> None:
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):  # arguments are described in the command's own help
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_in_the_readme(name: str) -> None:
    assert name in README


def test_options_in_the_readme_exist() -> None:
    known = {option for command in cli.commands.values() for p in command.params for option in p.opts}
    known |= {"--version", "--help"}
    commands = "\n".join(re.findall(r"^(?:uv run )?segx .*$", README, flags=re.MULTILINE))
    assert set(re.findall(r"--[a-z0-9-]+", commands)) <= known


def test_the_figures_in_the_readme_are_those_of_the_committed_bench() -> None:
    figures = runpy.run_path(str(ROOT / "docs" / "images" / "remake.py"))["figures"]
    assert figures(load_results(ROOT / "docs" / "results" / "xeon-2026-11-26")) in README


def test_pictures_and_files_in_the_pages_exist_and_every_picture_is_shown() -> None:
    targets = {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    }
    assert [target for target in targets if not target.exists()] == []
    assert {
        picture for picture in (ROOT / "docs" / "images").iterdir() if picture.suffix in {".png", ".svg"}
    } <= targets
