"""Links, the seconds of a round, and who is left out: by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.federation import fairness
from benchmarks.federation.codec import feedback
from benchmarks.federation.command_line import parser
from benchmarks.federation.links import Links, canonical, draw_links
from benchmarks.federation.models import build_model
from benchmarks.federation.options import UsageError, settings_of
from benchmarks.federation.pace import Pace, links_of, measured
from benchmarks.federation.participation import draw_participants
from benchmarks.federation.planning import plan
from benchmarks.federation.registry import find_method
from benchmarks.federation.settings import Settings
from tests.support import directory, rows, run, summary


def stream() -> np.random.Generator:
    return np.random.default_rng(7)


def settings_by(words: str) -> Settings:
    (found,) = settings_of(parser().parse_args(words.split()))
    return found


def pace(words: str, *sizes: int) -> Pace:
    s = settings_by(f"--clients {len(sizes)} {words}")
    model = build_model("mlp", (28, 28), 10, (0.5,), (0.5,))
    trainer = find_method(s.algo, s.parameterization).build(model, s.dense, s.alternate, **s.hyper)
    trainer.feedback = feedback(trainer, s.codec)
    return Pace(s, trainer, sizes)


def test_a_lognormal_draw_has_its_median_and_belongs_to_the_seed() -> None:
    rates = draw_links("lognormal:10,0.5", 20_000, stream()).up
    assert np.median(rates) == pytest.approx(10, rel=0.02)
    assert np.log(rates).std() == pytest.approx(0.5, rel=0.02)
    assert (draw_links("lognormal:3,0", 4, stream()).down == 3).all()
    one, other = (settings_by(f"--algo {algo} --links lognormal:10,1 --clients 5") for algo in ("fedavg", "pfedpara"))
    assert (links_of(one).up == links_of(other).up).all()
    assert (links_of(one).up != links_of(one.model_copy(update={"seed": 1})).up).all()
    more = links_of(one.model_copy(update={"clients": 9})).up
    assert (more[:5] == links_of(one).up).all()
    assert canonical("lognormal:10.0, 1.50") == "lognormal:10,1.5"
    assert Links(np.array([30.0]), np.array([10.0])).speed.tolist() == [15.0]  # 1/30 + 1/10 = 2/15


def test_a_file_names_each_client_s_link_or_is_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text("client,up,down,where\n1,2,20,here\n0,1,10,there\n7,9,9,nowhere\n")
    found = draw_links(str(path), 2, stream())
    assert (found.down.tolist(), found.up.tolist()) == ([10, 20], [1, 2])
    path.write_text("down,up\n8,1\n80,10\n")
    found = draw_links(str(path), 100, stream())
    assert {*found.down.tolist()} == {8, 80}
    assert (found.down == 8 * found.up).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("client,down,up\n0,1,1\n2,1,1\n", "client 1 has no row; one for each of 3 is right"),
        ("client,down,up\n0,1,1\n0,1,1\n", "client 0 has more than one row"),
        ("client,down,up\n0.5,1,1\n", "line 2: client is '0.5'; a whole number from 0 on is right"),
        ("down,up\n1,1\n1,0\n", "line 3: up is '0'; a rate above 0, in Mb/s, is right"),
        ("down,up\n1\n", "line 2: up is None; a rate above 0, in Mb/s, is right"),
        ("down,up\nfast,1\n", "line 2: down is 'fast'; a rate above 0, in Mb/s, is right"),
        ("rate\n1\n", "its first line must name the columns down and up, in Mb/s"),
        ("down,up\n", "it has no rows"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "links.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="--links") as error:
        draw_links(str(path), 3, stream())
    assert str(error.value) == f"--links {path}: {sentence}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--links lognormal:10", "--links: 'lognormal:10' is not right; lognormal:MEDIAN,SIGMA with a median above 0"),
        ("--links lognormal:0,1", "--links: 'lognormal:0,1' is not right"),
        ("--links lognormal:10,-1", "--links: 'lognormal:10,-1' is not right"),
        ("--links none.csv", "pfedpara: --links: 'none.csv' cannot be read (No such file or directory)"),
        ("--deadline-seconds 2", "--deadline-seconds 2 needs the clients' --links, such as lognormal:10,1"),
        ("--links lognormal:9,1 --deadline-seconds -1", "--deadline-seconds: input should be greater than or equal"),
        ("--links lognormal:9,1 --deadline-seconds 0.01", "pfedpara: --deadline-seconds 0.01: nobody makes it; the"),
        ("--links lognormal:9,1 --deadline-seconds 2 --deadline 2", "--deadline 2 and --deadline-seconds 2 both close"),
        ("--links lognormal:9,1 --deadline-seconds 2 --model cnn", "pfedpara: --deadline-seconds needs the training"),
        (
            "--algo fedselect --links lognormal:9,1 --deadline-seconds 2",
            "fedselect: --deadline-seconds needs the bytes",
        ),
        ("--links lognormal:9,1 --runtime fedml", "--runtime fedml has no --links lognormal:9,1; leave it out, or"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(tmp_path: Path, words: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(parser().parse_args([*words.split(), "--out", str(tmp_path)]))
    assert str(error.value).startswith(sentence)
    assert len(str(error.value).splitlines()) == 1


def test_seconds_are_those_of_training_and_both_messages(tmp_path: Path) -> None:
    """FedAvg sends 203,530 parameters and a header of 256 bytes; 8 Mb/s are a million bytes a second."""
    path = tmp_path / "links.csv"
    path.write_text("client,down,up\n0,8,8\n1,80,8\n")
    words = f"--links {path} --deadline-seconds 9 --epochs 5"
    c = measured()["fedavg"] * 10 / 500 * 5  # of a sample
    seconds = pace(f"--algo fedavg {words}", 100, 200).seconds(1, ())
    assert seconds == pytest.approx([100 * c + 0.814376 * 2, 200 * c + 0.0814376 + 0.814376])
    seconds = pace(f"--algo fedavg {words} --quantize 8", 100, 200).seconds(1, ())
    up = (203_530 + 4 * 4 + 256) / 1e6  # a byte a parameter, four of scale for each of four tensors
    assert seconds == pytest.approx([100 * c + 0.814376 + up, 200 * c + 0.0814376 + up])
    assert pace(f"--algo local {words}", 100, 200).seconds(1, ()) == pytest.approx(
        np.array([100, 200]) * measured()["local"] / 10
    )
    on_factors = pace(f"--algo fedper --parameterization pfedpara {words}", 100, 200).compute[0]
    assert on_factors == pytest.approx(10 * measured()["fedper"] * measured()["pfedpara"] / measured()["fedavg"])


def test_a_codec_s_and_fedmud_s_messages_have_their_own_bytes() -> None:
    links = "--links lognormal:10,1 --deadline-seconds 9"
    topk = pace(f"--algo fedavg --codec topk:0.01 {links}", 100).messages(1)
    assert topk == (814_376, 814_376, 256 + 8 * 2035)  # values and places
    mud = pace(f"--algo fedmud {links}", 100)
    assert mud.messages(1)[0] == mud.messages(1)[1]  # nobody has anything yet
    part, whole, up = mud.messages(2)
    assert whole - part == 4 * 784 * 256  # W of the hidden layer; the last one is dense
    assert up < part + 256
    slow = mud.seconds(2, ()) - mud.seconds(2, [0])
    assert slow[0] == pytest.approx((whole - part) / (125_000 * mud.links.down[0]))


def test_who_is_too_slow_is_late_in_each_round() -> None:
    s = settings_by("--clients 4 --links lognormal:10,1 --deadline-seconds 2 --dropout 0.3")
    seconds = np.array([2.0, 2.1, 1.0, 9.0])
    for number in range(1, 9):
        who = draw_participants(s, number, [5] * 4, seconds=seconds)
        assert who.drawn == [0, 1, 2, 3]
        assert who.late == [client for client in (1, 3) if client not in who.dropped]


def test_gini_by_hand() -> None:
    assert fairness.gini([3, 3, 3]) == 0
    assert fairness.gini([0, 0, 0, 1]) == 0.75
    assert fairness.gini([3, 1, 2]) == pytest.approx(8 / (2 * 9 * 2))  # differences 1, 1 and 2, each twice
    assert np.isnan(fairness.gini([1, np.nan]))
    assert np.isnan(fairness.gini([0, 0]))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30))
def test_gini_is_its_definition(values: list[float]) -> None:
    x = np.array(values)
    double_sum = np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean())
    assert fairness.gini(values) == pytest.approx(double_sum, abs=1e-12)


def test_deciles_and_classes_by_hand() -> None:
    assert fairness.by_decile(range(20), range(20)) == [0.5 + 2 * tenth for tenth in range(10)]
    assert fairness.by_decile([1, 2, 3], [9, 7, 8]) == [2, 3, 1]
    assert fairness.by_decile(range(12), [0] * 12)[:3] == [0.5, 2.5, 4]  # ties in the clients' order
    held = fairness.classes_held(np.array([[5, 5, 0], [10, 0, 0], [0, 0, 0]]))
    assert held == pytest.approx([2, 1, 0])


def test_a_job_leaves_out_who_is_late_and_sends_what_was_reckoned_with(tmp_path: Path) -> None:
    words = "--algo pfedpara-x --clients 4 --rounds 2 --epochs 1 --fraction 0.3 --quantize 8 --checkpoint-every 0"
    words += " --links lognormal:10,1 --deadline-seconds 1 --eval-every 0"
    done = run(*words.split(), "--out", str(tmp_path), ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    label = "pfedpara-x-8bit"
    found, ledger = summary(tmp_path, label), rows(directory(tmp_path, label) / "ledger.csv")
    access = found["access"]
    sizes = access["samples"]
    reckoned = pace(words.replace("--clients 4 ", ""), *sizes)
    heard = {
        number: {int(e["client"]) for e in ledger if e["direction"] == "up" and int(e["round"]) == number}
        for number in (1, 2)
    }
    assert 0 < len(heard[1]) < 4
    for number, before in ((1, set[int]()), (2, heard[1])):
        part, whole, up = reckoned.messages(number)
        for entry in (e for e in ledger if int(e["round"]) == number):
            down = part if int(entry["client"]) in before else whole
            assert int(entry["bytes"]) == (up if entry["direction"] == "up" else down)
        seconds = reckoned.seconds(number, before)
        assert heard[number] == {client for client in range(4) if seconds[client] <= 1}
    assert access["never_heard"] == sorted({0, 1, 2, 3} - heard[1] - heard[2])
    assert found["absent"] == {"dropped": 0, "late": 8 - len(heard[1]) - len(heard[2])}
    assert access["up"] == reckoned.links.up.tolist()
    joined = access["joined"]["per_client"]
    assert [joined[c] for c in heard[2]] == [found["accuracy"]["per_client"][c] for c in heard[2]]
    assert access["joined"]["by_speed"] == fairness.by_decile(joined, access["down"])
    assert access["joined"]["gini"] == fairness.gini(joined)
