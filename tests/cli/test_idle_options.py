"""An option that would change nothing is refused, with what would make it apply: command by command."""

import click
import pytest
from click.testing import CliRunner

from bench.catalogue.suites import AttackCell, Suite
from bench.cli import group
from bench.cli._options import refuse_idle
from bench.errors import BenchError
from bench.results.file import write_result
from tests.support.command import refused
from tests.support.example_results import corrupted, example
from tests.support.refusals import refusal

CLEAN = "suite clean holds no attacks. Take another suite, such as quick"
LOCAL = "engine local heeds no such thing; ray heeds --gpus, --address; slurm heeds --gpus, --slurm"
NO_MODEL = "nothing is compared with a model. Add --checkpoint RUN, or --model FILE.py:FACTORY"
KEPT = "r.h5 holds the images that were kept. To craft others, give a run folder"
NO_ATTACKS = "none of the results is of attacks, and it says which of their images count"
PROFILE = "--profile runs steps one by one and writes nothing. Leave out one of them"
OUT = "--out is the run's folder, and at needs no other model. Leave out one of them"

IDLE = [
    ("eval RUN --suite clean --convention final", "--convention", CLEAN),
    ("eval RUN --suite clean --convention any", "--convention", CLEAN),
    ("eval RUN --suite corruptions --precision bf16", "--precision", CLEAN.replace("clean", "corruptions")),
    ("eval RUN --suite clean --save-adversarials", "--save-adversarials", CLEAN),
    (
        "eval --model mine.py:make --suite quick --checkpoint average",
        "--checkpoint",
        "only runs of `bench train` have several. Give a run folder.",
    ),
    (
        "eval RUN --suite quick --corruptions-dir C",
        "--corruptions-dir",
        "holds no corruptions. Take --suite corruptions",
    ),
    ("sweep --dataset digits --suite clean --eval-precision bf16", "--eval-precision", CLEAN),
    ("sweep --dataset digits --gpus 1", "--gpus", LOCAL),
    ("sweep --dataset digits --jobs 2 --address auto", "--address", LOCAL),
    ("sweep --dataset digits --slurm partition=gpu --gpus 0", "--gpus, --slurm", LOCAL),
    ("sweep --dataset digits --engine ray --slurm time=5", "--slurm", LOCAL.replace("local", "ray")),
    ("sweep --dataset digits --engine slurm --address auto", "--address", LOCAL.replace("local", "slurm")),
    ("sweep --dataset digits --cpus 2", "--cpus", "takes every core. Add --jobs N for jobs with so many each"),
    ("train --defense at --dataset digits --profile --resume", "--resume", PROFILE),
    ("train --defense at --dataset digits --profile --out x --runs y", "--out, --runs", PROFILE),
    ("train --defense at --dataset digits --profile --watch 9", "--watch", PROFILE),
    ("train --defense at --dataset digits --out x --runs y", "--runs", OUT),
    ("reproduce table2 --stored --dry-run", "--dry-run", "--stored runs nothing. Leave out one of them"),
    ("verify r.h5 --dataset digits", "--dataset", NO_MODEL),
    ("verify r.h5 --batch-size 8 --weights w.pt", "--weights, --batch-size", NO_MODEL),
    ("verify r.h5 --threat-model L2 --model-dir m", "--threat-model, --model-dir", NO_MODEL),
    ("figure sheet r.h5 --out s --suite full --limit 9", "--suite, --limit", KEPT),
    ("figure sheet r.h5 --out s --dataset digits --eps 0.1 --seed 1", "--dataset, --eps, --seed", KEPT),
    ("figure curve r.h5 --out s --attack AA", "--attack", "it chooses whose distances are drawn. Add --distances"),
    ("figure curve r.h5 --out s --distances --convention any", "--convention", "distances are of images found on the"),
    ("leaderboard c.h5 --convention final", "--convention", NO_ATTACKS),
    ("compare c.h5 c.h5 --convention any", "--convention", NO_ATTACKS),
]


@pytest.mark.parametrize(("line", "options", "reason"), IDLE, ids=[line for line, _, _ in IDLE])
@pytest.mark.usefixtures("bench")
def test_an_option_that_would_change_nothing_is_refused(line, options, reason):
    write_result(corrupted({"fog": (9, 5)}), "c.h5")
    told = refused(*line.split())
    assert told.startswith(f"{options} would change nothing: ") and reason in told


REFUSED = [
    ("eval RUN --eps l2=0.5", "--eps l2=0.5 would change nothing in suite quick: its attacks take one under linf."),
    ("eval RUN --suite clean --eps 0.1", "--eps linf=0.1 would change nothing in suite clean: its attacks take none."),
    ("figure sheet RUN --out s --eps l1=3", "--eps l1=3 would change nothing in suite quick: "),
    ("eval RUN --eps 0.1 --eps linf=0.2", "--eps gives linf twice: 0.1 and 0.2. Give it once."),
    ("train --defense trades --dataset digits --set beta=1 --set beta=2", "beta is given twice: 1 and 2. Give it once"),
    ("eval RUN --model-dir models", "--model-dir goes with --model robustbench:NAME; other models lie where"),
    ("eval RUN --threat-model L2", "--threat-model goes with --model robustbench:NAME"),
    ("eval RUN --weights w.pt", "--weights goes with --model FILE.py:FACTORY"),
    ("eval RUN --suite clean --transfer RUN", "suite clean has no iterative attack to add a column to"),
    ("eval RUN --suite clean --adaptive loss.py:loss", "suite clean has no iterative attack to add a column to"),
    ("eval RUN --classes 7", "digits has 10 classes, not 7: leave out --classes."),
    ("train --defense at --dataset digits --cuda-graphs --device cpu", "CUDA graphs exist on CUDA devices only"),
    ("train --defense at --dataset digits --precision tf32 --device cpu", "tf32"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_other_refusals_of_what_does_not_apply(bench, tmp_path, digits_run, line, message):
    (tmp_path / "loss.py").write_text(
        "def loss(model, perturbed, clean, labels):\n    return perturbed.sum((1, 2, 3))\n"
    )
    code, output = bench(*line.replace("RUN", str(digits_run)).split())
    assert code == 2
    assert output.splitlines()[-1].startswith("Error: ")
    assert message in output


def test_a_radius_of_a_suites_own_takes_no_other():
    cells = (AttackCell("A", "pgd", "linf", "0.1"), AttackCell("B", "pgd", "l2", "0.5*eps"))
    suite = Suite("mixed", 1, "", cells, {})
    told = ("--eps linf=0.2 would change nothing in suite mixed: ", " one under l2")
    refusal(lambda: suite.refuse_idle_radii({"linf": "0.2"}), *told)
    suite.refuse_idle_radii({"l2": "0.5"})
    assert [cell.epsilon for cell in suite.resolve({}, {"l2": "0.5"}).cells] == ["0.1", "0.25"]


def test_where_a_convention_does_apply_it_is_taken(bench):
    write_result(example(), "a.h5")
    code, output = bench("leaderboard", "a.h5", "--convention", "final")
    assert code == 0, output
    assert "convention final" in output


@pytest.mark.parametrize(
    ("arguments", "refused"), [([], False), (["--size", "1"], True), (["--size", "2"], True), (["--no-fast"], True)]
)
def test_what_counts_is_whether_a_person_said_it(arguments, refused):
    @click.command()
    @click.option("--size", default=1)
    @click.option("--fast/--no-fast", default=True)
    def command(size, fast):
        refuse_idle(["size", "fast"], "why.")

    outcome = CliRunner().invoke(command, arguments)
    assert isinstance(outcome.exception, BenchError) is refused
    if refused:
        assert str(outcome.exception).endswith(" would change nothing: why.")


def test_every_option_that_is_refused_exists():
    """A reason names flags of the command it is about."""
    for line, options, _ in IDLE:
        command = group
        for word in line.split()[: 1 + line.startswith("figure")]:
            command = command.get_command(click.Context(command), word)
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert set(options.split(", ")) <= known
