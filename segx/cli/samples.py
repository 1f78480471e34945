"""``segx samples``."""

from __future__ import annotations

from pathlib import Path

import click

from segx.cli.options import COUNT, PATH, SIZE, debug_option


@click.command()
@click.option("--count", type=COUNT, default=64, show_default=True, help="Number of scenes.")
@click.option(
    "--size", type=SIZE, default="256", show_default=True, help="Size in pixels, as 512 or 640x480 (width x height)."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the scenes.")
@click.option("--output", "--out", type=PATH, required=True, help="Folder to write images/ and masks/ to.")
@debug_option
def samples(count: int, size: tuple[int, int], seed: int, output: Path) -> None:
    """Write generated microscopy scenes and their true masks.

    They are PNG files. The same seed gives the same pixels on every machine.

    \b
    segx samples --count 200 --size 512 --output scenes/
    """
    from segx.model.synthetic import write_samples
    from segx.system.progress import progress_on

    width, height = size
    with progress_on() as progress:
        progress.say("writing scenes")
        progress.expect(count)
        for number, _ in enumerate(write_samples(output, count=count, seed=seed, height=height, width=width)):
            progress.reach(number + 1)
    click.echo(f"{count} images and masks of {width}x{height} pixels in {output}")
