"""A defense of one's own beside adversarial training, on scikit-learn's digits: `python examples/add_a_defense.py`.

The defense is examples/clean_and_adversarial.py: copy that file, change its loss, and name the copy with --plugin.
"""

import shlex
from pathlib import Path

import click

from bench.cli import group

HERE = Path(__file__).resolve().parent


@click.command()
@click.option("--plugin", type=click.Path(exists=True, path_type=Path), default=HERE / "clean_and_adversarial.py")
@click.option("--epochs", default=5, show_default=True, help="20 are the protocol's.")
@click.option("--limit", default=200, show_default=True, help="Test images, 500 at most.")
@click.option("--suite", default="linf", show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("example-runs"), show_default=True)
def main(plugin: Path, epochs: int, limit: int, suite: str, runs: Path) -> None:
    """Train two defenses alike, attack both alike, print the board and the comparison."""
    mine = plugin.stem.replace("_", "-")
    results = []
    for defense in (mine, "at"):
        folder, result = runs / defense, runs / f"{defense}.h5"
        bench(
            "train",
            "--plugin",
            plugin,
            "--defense",
            defense,
            "--dataset",
            "digits",
            "--epochs",
            epochs,
            "--out",
            folder,
        )
        bench("eval", folder, "--plugin", plugin, "--suite", suite, "--limit", limit, "--out", result, "--overwrite")
        results.append(result)
    bench("leaderboard", *results)
    bench("compare", *results)


def bench(*arguments: object) -> None:
    """Say a command, and run it."""
    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ bench {shlex.join(words)}", bold=True)
    group.main(words, prog_name="bench", standalone_mode=False)


if __name__ == "__main__":
    main()
