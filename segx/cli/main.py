"""The ``segx`` command group; each command has a file in ``segx.cli``."""

from __future__ import annotations

import click

from segx import __version__
from segx.cli.bench import bench
from segx.cli.demo import demo
from segx.cli.doctor import doctor
from segx.cli.export import export
from segx.cli.predict import predict
from segx.cli.report import compare, history, plan, report
from segx.cli.samples import samples


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, invoke_without_command=True
)
@click.version_option(__version__, prog_name="segx")
@click.pass_context
def cli(context: click.Context) -> None:
    """Which runtime, precision and batch size should I deploy, and are the masks still the same?

    \b
    segx bench --runtime all --quick      compare runtimes in minutes
    segx bench --images photos/           compare on your own images
    segx export --weights model.pth       export a checkpoint to ONNX, checked
    segx predict photos/ --output masks/  segment images with the fastest variant
    segx demo                             segment images in the browser
    segx report artifacts/bench-…         write a page: what to deploy, and why
    segx doctor                           list runtimes, and what is missing
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (export, bench, predict, demo, report, plan, compare, history, samples, doctor):
    cli.add_command(_command)
