"""Which hyper-parameters a command line means."""

import subprocess
import sys
from typing import Any

import pytest
import shtab

from benchmarks.federation import command_line, options
from benchmarks.federation.command_line import parser
from benchmarks.federation.options import settings_of
from benchmarks.federation.suites import UsageError
from tests.support import ROOT


@pytest.fixture(autouse=True)
def tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_tuned", lambda dataset, model: {"fedavg": {"lr": 0.7}})


def hyper(algo: str, *line: str) -> dict[str, Any]:
    (found,) = (s.hyper for s in settings_of(parser().parse_args(line)) if s.algo == algo)
    return found


def test_tuned_values_replace_defaults_and_the_command_line_both() -> None:
    assert hyper("fedavg", "--algo", "fedavg")["lr"] == 0.7
    assert hyper("fedavg", "--algo", "fedavg", "--lr", "0.2")["lr"] == 0.2
    assert hyper("fedavg", "--algo", "fedavg")["clip_norm"] == 1.0


def test_a_method_s_own_choice_wins_whatever_the_order() -> None:
    line = ("--algo", "fedavg", "pfedme", "local", "--set", "pfedme.lr=0.1", "lr=0.3", "local.lr=0.4")
    assert [hyper(algo, *line)["lr"] for algo in ("fedavg", "pfedme", "local")] == [0.3, 0.1, 0.4]


def test_an_option_reaches_the_methods_that_have_it() -> None:
    line = ("--algo", "fedavg", "pfedpara", "--gamma", "0.2")
    assert hyper("pfedpara", *line)["gamma"] == 0.2
    assert "gamma" not in hyper("fedavg", *line)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("--algo", "fedavg", "--gamma", "0.2"), "no hyper-parameter 'gamma' in fedavg"),
        (("--algo", "fedavg", "--set", "lam"), r"--set takes \[ALGO.\]NAME=VALUE"),
        (("--algo", "fedavg", "--set", "pfedme.lam=3"), "for one of the methods fedavg, got 'pfedme.lam=3'"),
        (("--algo", "fedavg", "--lr", "fast"), "fedavg: --lr: input should be a valid number.*got 'fast'"),
        (("--algo", "fedavg", "--epochs", "1.5"), "fedavg: --epochs: .*got '1.5'"),
    ],
)
def test_nonsense_is_told(line: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        hyper("fedavg", *line)


def test_help_shows_every_option_under_one_heading() -> None:
    said = command_line.parser().format_help().partition("options:")[2]
    for title, names in command_line.GROUPS.items():
        section = said.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        for name in names:
            option = f"  --{name.replace('_', '-')} "
            assert section.count(option) == said.count(option) == 1, name


@pytest.mark.parametrize("command", ["run.py --help", "run.py --version", "report.py --help", "tune.py --help"])
def test_help_imports_nothing_that_takes_long(command: str) -> None:
    name, option = command.split()
    words = [sys.executable, "-X", "importtime", str(ROOT / "benchmarks" / name), option]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "fedml", "pandas", "scipy", "matplotlib", "bokeh", "optuna", "sklearn"}


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--algo local pfed", "pfedme pfedlmt pfedpara-x pfedpara"),
        ("--dataset c", "cifar10 cifar100 cinic10 csv:"),
        ("--partition d", "dirichlet:"),
        ("--model cnn", "cnn cnn-bn"),
        ("--suite quic", "quick"),
        ("--preset scenario", "scenario1 scenario2 scenario3"),
        ("--quantize-down 1", "16"),
        ("--optimizer adam", "adam adamw"),
        ("--parameterization low", "lowrank"),
        ("--new", "--new-clients"),
    ],
)
def test_bash_completes_names_and_values(typed: str, shown: str) -> None:
    script = shtab.complete(parser(), shell="bash")
    words = ["pfl-run", *typed.split()]
    script += f"\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
    script += "$(complete -p benchmarks/run.py | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\necho ${COMPREPLY[@]}"
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == shown.split()


def test_what_is_completed_keeps_nothing_else_out() -> None:
    chosen = parser().parse_args(["--algo", "my_method:Mine", "--dataset", "csv:cells.csv", "--suite", "mine.yaml"])
    assert (chosen.algo, chosen.dataset, chosen.suite) == (["my_method:Mine"], "csv:cells.csv", "mine.yaml")


def test_a_shell_completes_options_and_names() -> None:
    def completed(*words: str) -> list[str]:
        script = f"""source <({sys.executable} benchmarks/run.py --print-completion bash)
            COMP_WORDS=(benchmarks/run.py {" ".join(words)}) COMP_CWORD={len(words)}
            $(complete -p benchmarks/run.py | sed 's/.*-F //; s/ .*//')
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("--quantize-d") == ["--quantize-down"]
    assert sorted(completed("--algo", "local", "fedp")) == ["fedpac", "fedpara", "fedper", "fedprox"]
