"""The frame of every script, by kind: streams, letters, refusals of a command line, failures, starts."""

import contextlib
import dataclasses
import difflib
import errno
import json
import logging
import os
import random
import re
import resource
import shlex
import subprocess
import sys
import threading
from unittest import mock

import pytest
from command_line import ROOT, command, environment, started
from conftest import seeds
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from test_configurations import composed

from pds.errors import MissingError, OptionError, PDSError, escaped
from pds.generation import Processes
from pds.lab import cli, grammar
from pds.lab.config import CONF
from pds.lab.logs import LONGEST, Lines
from pds.lab.sweep import PlannedSweep
from pds.lab.terminal import steady

TINY = ["debug=tiny", "images=2", "sampler.iterations=2", "metric=none"]
ENCODINGS = ("ascii", "cp1252", "iso8859-1", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16")
LETTERS = [(0x20, 0x7F), (0xA0, 0x180), (0x370, 0x400), (0x2000, 0x2300), (0xD800, 0xE000), (0x1F300, 0x1F600)]


def text(draw, longest=40):
    return "".join(chr(draw.randrange(*draw.choice(LETTERS))) for _ in range(draw.randrange(1, longest)))


@seeds(60)
def test_any_text_is_shown_in_any_locale(seed, tmp_path):
    draw = random.Random(seed)
    encoding, said = draw.choice(ENCODINGS), [text(draw) for _ in range(5)]
    with (tmp_path / "said").open("w", encoding=encoding) as file:
        stream = steady(file)
        for line in said:
            print(line, file=stream)
        stream.flush()
    shown = (tmp_path / "said").read_bytes()
    assert shown == "".join(f"{line}\n" for line in said).encode(encoding, "backslashreplace")


def test_the_end_of_a_thread_is_one_sentence(capsys):
    def write():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events.out")

    def work(_):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    with (
        mock.patch.object(threading, "excepthook"),
        mock.patch.object(cli, "steady_streams"),
        pytest.raises(SystemExit) as ended,
    ):
        cli.start(work)
    assert ended.value.code == 0
    assert capsys.readouterr().err == "error: events.out: No space left on device: make room and run the same command again\n"


@contextlib.contextmanager
def lost(how):
    """A text stream whose bytes are lost: its disk is full, or its reader is gone."""
    if how == "full":
        target = "/dev/full"
    else:
        reader, target = os.pipe()
        os.close(reader)
    with contextlib.suppress(OSError), open(target, "w") as file:
        yield file


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.parametrize("how", ["full", "pipe"])
@seeds(25)
def test_a_stream_that_takes_nothing_fails_nothing(how, seed):
    draw = random.Random(seed)
    with lost(how) as file:
        stream = steady(file)
        for _ in range(draw.randrange(1, 200)):
            print(text(draw, 400), file=stream, flush=draw.random() < 0.3)
        stream.flush()
        with pytest.raises(OSError, match=r"Broken pipe|No space"):
            print("x", file=file, flush=True)


def test_a_stream_that_was_closed_before_the_start_is_a_quiet_one():
    stream = steady(None)
    print("α", file=stream, flush=True)
    stream.close()


@seeds(60)
def test_a_log_line_is_one_printable_line_of_bounded_length(seed):
    draw = random.Random(seed)
    controls = ["\n", "\r", "\x1b[2J", "\x9b", "\x00", "\u2028", "\u202e", "\ud800", "\x07"]
    message = "".join(draw.choice([draw.choice(controls), text(draw)]) for _ in range(draw.choice([3, 400])))
    record = logging.LogRecord("pds", logging.ERROR, __file__, 1, "error: %s", (message,), None)
    line = Lines("%(levelname)s %(message)s").format(record)
    assert line.isprintable() and line.startswith("ERROR error: ")
    assert len(line) <= 10 * LONGEST and (len(message) < LONGEST or " ... " in line)
    assert escaped("α, ² – ü") == escaped("α, ² – ü", LONGEST) == "α, ² – ü"


def test_a_traceback_keeps_its_lines_and_nothing_else():
    try:
        raise RuntimeError("\x1b[31mred\nerror: all is well")
    except RuntimeError as error:
        record = logging.LogRecord("pds", logging.ERROR, __file__, 1, "failed", (), (RuntimeError, error, error.__traceback__))
    said = Lines("%(message)s").format(record)
    assert said.startswith("failed\nTraceback") and "\x1b" not in said


SPECIAL = "=,()[]{}:#'\"\\ "


def refusal(override):
    """The sentence for a value that Hydra cannot read, or takes for several; None if it reads one value."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        return grammar.sentence(error)
    several = ConfigCompositionException(f"Ambiguous value for argument '{override}'\n1. To use it as a list")
    return grammar.sentence(several) if parsed.is_sweep_override() else None


def test_a_value_that_hydra_cannot_read_is_refused_with_the_words_that_it_reads():
    draw, mended = random.Random(0), 0
    for _ in range(80):
        parts = ["a", "ckpt", "/", ".", "-", "7", draw.choice(SPECIAL)]
        override = f"model.checkpoint=/w{''.join(draw.choice(parts) for _ in range(draw.randrange(3, 12)))}"
        said, fix = refusal(override), grammar.quoted(override)
        if said is None:
            continue
        assert "\n" not in said, override
        if fix is None:  # such as a value with a quotation mark at one end
            assert set(override) & set("'\"\\") and "as in" not in said, override
            continue
        assert f"as in {fix}" in said, override
        (given,) = shlex.split(fix)
        assert OverridesParser.create().parse_override(given).value() == override.partition("=")[2].strip("'\"")
        mended += 1
    assert mended > 20


@pytest.fixture(scope="module")
def configuration():
    return composed("filter=statistics", "model=ncsnpp_small")


@seeds(80)
def test_a_misspelt_key_is_told_with_the_one_that_was_meant(seed, configuration):
    draw = random.Random(seed)
    keys = [key for key in grammar._keys(OmegaConf.to_container(configuration, resolve=False)) if len(key.split(".")[-1]) > 4]
    key = draw.choice([key for key in keys if "._" not in key and not key.startswith(("published", "sweep"))])
    at = draw.randrange(key.rfind(".") + 2, len(key) - 1)
    before, rest = key[:at], key[at:]
    wrong = draw.choice([before + rest[1:], f"{before}x{rest}", f"{before}{rest[1]}{rest[0]}{rest[2:]}"])
    if wrong in keys:
        return
    overrides = OverridesParser.create().parse_overrides([f"{wrong}=1"])
    with pytest.raises(HydraException) as error:
        ConfigLoaderImpl._apply_overrides_to_config(overrides, configuration.copy())
    said = grammar.sentence(error.value)
    (meant,) = re.findall(rf"there is no {re.escape(wrong)} \(did you mean (\S+)\?\)", said)
    likeness = [difflib.SequenceMatcher(None, wrong, name).ratio() for name in (meant, key)]
    assert meant == key or likeness[0] >= likeness[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["modle=ncsn_small"], "there is no modle (did you mean model?)"),
        (["model=ncsn_smal"], "there is no model=ncsn_smal (did you mean ncsn_small?): choose one of cld, "),
        (["sampler.iterations=many"], "sampler.iterations=many is not possible: Value 'many'"),
        (["filter=statistics", "filter.alpha=interval(1,3)"], "has no values to try one after the other: list them"),
        (["images=null"], "images=null is not possible: give a value"),
        (["filter=none,statistics"], "has several values: add -m to try each"),
        (["filter=glob(s*)"], "filter=glob(s*) has several values: add -m to try each"),
        (["seed"], "seed sets nothing: write KEY=VALUE"),
        (["model@x=3"], "the command line cannot be used: "),
        (["+seed=3"], "the command line cannot be used: Could not append to config"),
        (["+new.key=1"], "there is no new: the keys are model, dataset, "),
        (["-m", "+sampler.new=1,2"], "there is no sampler.new (did you mean sampler.denoise?): sampler has iterations, "),
        (["~seed"], "seed cannot be removed: leave out ~seed"),
        (["metric=null"], "a choice is a name, as in metric=none"),
        (["remedy=null"], "remedy=null names no choice: leave remedy out to have none"),
        (["-m", "guidance=null,classifier_free"], "guidance=null names no choice: leave guidance out to have none"),
        (
            ["experiment=few_steps/ncsnpp_small_t10", "~remedy"],
            "remedy.scale is given, and no remedy is chosen: give remedy=NAME",
        ),
        (["-m", "seed=0,1", "++guidance.scale=2"], "guidance.scale is given, and no guidance is chosen: give guidance=NAME"),
        (["sweep.number=3"], "sweep.number=3 cannot be given: a sweep sets it"),
        (["compile=7"], "compile must be true or false, got 7"),
        (["bf16=-1"], "bf16 must be true or false, got -1"),
        (["model.process=7", "model=ncsnpp_small"], "model.process must be "),
        ([f"model.sigma_end=1{400 * '0'}"], f"model.sigma_end=1{400 * '0'} is not possible: "),
        (["sampler='a\0b'"], "the command line cannot be used: "),
        (["-m", "seed=0,1", "+hydra.sweeper.points=1e-320"], "hydra.sweeper cannot be made of these values: "),
        (["tracker=[]"], "tracker=[] names no tracker: give names, as in tracker=[tensorboard,mlflow], or tracker=none"),
        (["tracker=[mlflow,]"], "tracker=[mlflow,] names no tracker: "),
        (["tracker=[none]"], "tracker=[none] has none beside others: give tracker=none"),
        (["metric=[mnist_classifier,panel]"], "and metric takes one choice: metric=panel computes several measures"),
        (["filter=[none,statistics]"], "and filter takes one choice: -m filter=A,B tries several"),
        (["experiment=ncsnpp_church/t80_pdx"], "(did you mean ncsnpp_church/t80_pds?): --list experiments shows"),
        (["group=train"], "group='train' is the folder of trainings: give another name"),
        (["--frobnicate"], "the command line cannot be used (unrecognized arguments: --frobnicate)"),
        (["seed=1", "-m", "group=g", "--cfg", "all of it"], "the command line cannot be used (argument --cfg"),
        (["-m", "seed=range(5,5)"], "seed=range(5,5) names no value: a sweep needs at least one"),
        (["-m", "filter=glob(zzz*)", "seed=0,1"], "filter=glob(zzz*) names no value"),
        (["-m", "filter=statistics", "filter.alpha=interval(1,3)"], "has no values to try one after the other"),
        (["-m", "model.checkpoint=epoch=1-step=5.ckpt"], "cannot be read: quote a value with"),
    ],
)
def test_what_hydra_refuses_is_one_sentence_and_a_status(given, says, tmp_path):
    refused = command("run.py", *given, f"outputs={tmp_path / 'outputs'}")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1 and refused.stderr.startswith("error: ") and says in refused.stderr
    assert not (tmp_path / "outputs").exists()


@seeds(60)
def test_a_key_that_no_option_has_and_one_that_is_gone_are_refused_by_name(seed, configuration):
    draw, cfg = random.Random(seed), configuration.copy()
    grammar.require_known(cfg)
    found = {key: OmegaConf.select(cfg, key) for key in grammar._keys(OmegaConf.to_container(cfg, resolve=False))}
    # Other tables are options themselves, with free keys.
    nodes = ["", *(key for key, node in found.items() if dataclasses.is_dataclass(OmegaConf.get_type(node)))]
    key = draw.choice([f"{node}.x{draw.randrange(9)}".lstrip(".") for node in nodes])
    OmegaConf.update(cfg, key, draw.choice([1, "x", None, {"y": 1}, [1]]), force_add=True)
    with pytest.raises(PDSError, match=f"^there is no {re.escape(key)}[: ]"):
        grammar.require_known(cfg)
    cfg = configuration.copy()
    gone = draw.choice(["seed", "images", "metric", "batch_size", "sweep"])
    OmegaConf.set_struct(cfg, False)
    del cfg[gone]
    with pytest.raises(PDSError, match=f"^{gone} cannot be removed"):
        grammar.require_known(cfg)


@seeds(60)
def test_an_empty_table_which_would_change_nothing_is_refused(seed, configuration):
    draw = random.Random(seed)
    nodes = list(grammar._keys(OmegaConf.to_container(configuration, resolve=False)))
    key = draw.choice(["", "+", "++"]) + draw.choice([*nodes, "space", "space.edm", "origins", "table"])
    given = f"{key}={draw.choice(['', ' '])}{{{draw.choice(['', ' ', '  '])}}}"
    with pytest.raises(PDSError, match=rf"^{re.escape(key)}={{}} changes nothing: leave it out, or "):
        grammar.typed(given)
    assert grammar.typed(f"{key}={{a:1}}") == f"{key}={{a:1}}"


def test_a_program_of_any_kind_refuses_an_empty_table():
    for script, key in (("run.py", "filter"), ("tune.py", "space"), ("reproduce.py", "origins"), ("train.py", "model.process")):
        refused = command(script, f"{key}={{}}")
        assert refused.returncode == 1 and refused.stderr.startswith(f"error: {key}={{}} changes nothing: "), refused.stderr


def test_a_file_of_the_configuration_that_cannot_be_read_is_named(tmp_path):
    draw, refused = random.Random(0), 0
    whole = b"# @package _global_\nimages: 2\nfilter:\n  alpha: [1, 2]\n"
    file, source = tmp_path / "default.yaml", FileConfigSource("main", str(tmp_path))
    tokens = [
        b"\xff",
        b"\xed\xa0\x80",
        b"\0",
        b"\t",
        b"[",
        b"}",
        b'"',
        b"&a ",
        b"*b",
        b"!!python/name:os.abort ",
        b"%YAML 9",
        b": :",
    ]
    for _ in range(100):
        at = draw.randrange(len(whole))
        file.write_bytes(whole[:at] + draw.choice(tokens) + whole[at:])
        try:
            source.load_config("default")
        except Exception as error:
            said = grammar.sentence(error)
            assert said.startswith(f"{file} is no configuration (") and said.isprintable() and len(said) < 600, said
            refused += 1
    assert refused > 30


@seeds(60)
def test_a_choice_that_hydra_would_leave_out_is_refused(seed):
    draw = random.Random(seed)
    known = sorted(path.stem for path in (CONF / "published").glob("*.yaml"))
    name = draw.choice(known)
    grammar.require_choice(f"published={name}", CONF)
    at = draw.randrange(len(name))
    wrong = draw.choice([name[:at] + name[at + 1 :], f"{name[:at]}x{name[at:]}", "3", "a/b", "\x1b", "x" * 3000])
    for given in (wrong, f"{name},{wrong}"):
        with pytest.raises(PDSError, match=f"^there is no published=.*: choose one of {known[0]}, ") as error:
            grammar.require_choice(f"published={given}", CONF)
        assert str(error.value).isprintable()
    with pytest.raises(PDSError, match=r"^there is no local=.*: put .* into "):
        grammar.require_choice(f"local={wrong}", CONF)
    for left in ("model=nothing", "published.card=nothing", "sampler=published"):
        grammar.require_choice(left, CONF)


@seeds(60)
def test_letters_beyond_ascii_need_no_quotes(seed):
    draw = random.Random(seed)
    letters = "".join(draw.choice("abc/._-ü日ñ\udcc3é") for _ in range(draw.randrange(1, 20)))
    override = f"outputs=/{letters}"
    parsed = OverridesParser.create().parse_override(grammar.typed(override))
    assert parsed.value() == f"/{letters}" and not parsed.is_sweep_override()
    for left in (f"a={letters},b", f"a=[{letters}]", f'a="{letters}"', "seed=0,1", "é"):
        assert grammar.typed(left) == left


def test_names_that_look_like_numbers_stay_as_they_are():
    parse = OverridesParser.create().parse_override
    for name in ("1.10", "2024_01_06", "007", "1e3", "+5", "true", "NaN", "0x10", "12"):
        for key in ("group", "outputs", "dataset.statistics_file"):
            assert str(parse(grammar.typed(f"{key}={name}")).value()) == name
        assert grammar.typed("group=a, b ") == "group=a,b"
        swept = parse(grammar.typed(f"group={name}, a")).sweep_string_iterator()
        assert [str(parse(f"group={value}").value()) for value in swept] == [name, "a"]
        assert grammar.typed(f"sampler.eta={name}") == f"sampler.eta={name}"
    assert composed(grammar.typed("group=1.10")).group == "1.10"


class BegunError(Exception):
    """A sweep came to its points."""


class Begun:
    """Hydra's part of a sweeper."""

    config, launcher, hydra_context = {}, mock.Mock(), mock.Mock()

    def __init__(self, max_batch_size):
        pass

    def split_arguments(self, overrides, max_batch_size):
        raise BegunError


class Sweeper(PlannedSweep, Begun):
    pass


@seeds(60)
def test_a_sweep_over_nothing_is_refused(seed):
    draw = random.Random(seed)
    start = draw.randrange(-50, 50)
    empty = draw.choice(
        [f"range({start},{start})", f"range({start},{start - draw.randrange(1, 9)})", f"range({start},{start + 5},-1)"]
    )
    wrapped = draw.choice(["{}", "shuffle({})", "sort({})"]).format(empty)
    for values, says in ((wrapped, "names no value"), (f"interval({start},{start + 1})", "has no values to try")):
        with pytest.raises(PDSError, match=says):
            Sweeper().sweep([f"seed={values}"])
    for values in (f"range({start},{start + 2})", "3", "[1,2]", "1,2"):
        with pytest.raises(BegunError):
            Sweeper().sweep([f"seed={values}"])


FAILURES = [PDSError("no"), MissingError("no"), OptionError("rho", "must be positive"), MemoryError()]


@seeds(60)
def test_a_failure_is_one_sentence_with_the_place_and_a_status(seed, capsys):
    draw = random.Random(seed)
    code = draw.choice(list(errno.errorcode))
    # pytest keeps the log, and pytest-xdist cannot send half a character in it.
    path = f"/{text(draw)}\x1b\n".encode("utf-8", "ignore").decode() if draw.random() < 0.8 else None
    failure = draw.choice([OSError(code, os.strerror(code), path), OSError("closed"), draw.choice(FAILURES)])
    assert cli.status(_raises(failure), []) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and escaped(said, keep="\n") == said
    if isinstance(failure, OSError) and failure.errno:
        assert failure.strerror in said and (path is None or escaped(path) in said)


def _raises(failure):
    def work(arguments):
        raise failure

    return work


def test_the_status_is_that_of_the_work(capsys):
    defect = RuntimeError("ours")
    statuses = {0: SystemExit(0), 3: SystemExit(3), 1: SystemExit("said"), cli.STOPPED: KeyboardInterrupt()}
    for status, failure in statuses.items():
        assert cli.status(_raises(failure), []) == status
    assert cli.status(len, []) == 0 and cli.status(_raises(cli.Failed()), []) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.status(_raises(defect), []) == 1
    assert "error: RuntimeError: ours\nTraceback" in capsys.readouterr().err


@pytest.mark.parametrize("sweeps", [True, False])
@pytest.mark.parametrize("place", ["/proc/nowhere", "file", "file/below", "full"])
def test_a_disk_that_takes_nothing_is_one_sentence(place, sweeps, tmp_path):
    (tmp_path / "file").touch()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if place == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        given = ["-m", "seed=0,1"] if sweeps else []
        refused = command("run.py", *given, *TINY, f"outputs={tmp_path / place}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path / place}") and "choose a folder that you can write to" in last


def test_a_rank_without_its_world_is_refused(tmp_path, monkeypatch):
    says = "start the processes with torchrun, or unset RANK to run in one"
    for variables in ({"RANK": "x"}, {"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(PDSError, match=f"RANK is .*{says}"):
                Processes.join()
    monkeypatch.setenv("RANK", "1")
    refused = command("run.py", *TINY, f"outputs={tmp_path}")
    assert (refused.returncode, refused.stderr.endswith(f"{says}\n")) == (1, True)


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); import pds.lab"
    refused = started("-c", code, cwd=tmp_path / "gone")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "the current folder is gone" in refused.stderr


# Every script, read from another folder with the safe path on, by its file and as a module.
EVERYWHERE = """
import json, runpy, sys
from pathlib import Path
from unittest import mock
from pds.lab import cli
root = Path(sys.argv[1])
scripts = [path for path in (root / "experiments").rglob("*.py") if "cli import" in path.read_text()]
names = [".".join(path.relative_to(root).with_suffix("").parts) for path in scripts]
with mock.patch.object(cli, "start") as start:
    for path in scripts:
        runpy.run_path(str(path), run_name="__main__")
    sys.path.append(str(root))
    for name in names:
        runpy.run_module(name, run_name="__main__")
assert start.call_count == 2 * len(scripts) > 15, scripts
run = next(call.args[0] for call, path in zip(start.call_args_list, scripts) if path.name == "run.py")
sys.path = [path for path in sys.path if not path.endswith("experiments")]
sys.exit(cli.status(run, sys.argv[2:]))
"""


def test_every_script_starts_from_everywhere(tmp_path):
    given = ["-m", *TINY, "seed=0,1", "outputs=out"]
    done = started("-c", EVERYWHERE, str(ROOT), *given, cwd=tmp_path, PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out/debug/*/result.json"))) == 2


def test_scripts_without_options_answer_and_refuse():
    for given, status, says in (
        (["report.py", "--help"], 0, "python experiments/report.py outputs/quickstart"),
        (["report.py"], 1, "error: name the folders of groups"),
        (["report.py", "--open"], 1, "error: name the folders of groups"),
        *(
            ([f"tools/{name}.py", "-h"], 0, f"python experiments/tools/{name}.py")
            for name in ("assets", "latents", "moments", "reference", "ship")
        ),
        *(([f"tools/{name}.py", "--help"], 0, f"experiments/tools/{name}.py") for name in ("published", "panel_cost")),
        (["run.py", "model=own", "--help"], 0, "model.make=???"),
        (["tools/reference.py", "x"], 1, "error: reference.py takes no arguments, got x"),
    ):
        done = command(*given)
        assert (done.returncode, says in done.stdout + done.stderr) == (status, True), done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.parametrize("streams", ["1>/dev/full 2>&-", "2>&1 | head -c 1"])
def test_nobody_need_watch_a_run_and_no_locale_need_know_its_letters(streams, tmp_path):
    here = environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    run = [sys.executable, "experiments/run.py", *TINY, "filter=statistics", "tracker=none", f"outputs={tmp_path}/ü"]
    script = f"({shlex.join(run)}; echo $? > {tmp_path}/status) {streams}"
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=here, check=False)
    assert (tmp_path / "status").read_text() == "0\n"
    (result,) = tmp_path.glob("ü/debug/*/result.json")
    assert "α" in json.loads(result.read_text(encoding="utf-8"))["label"]
