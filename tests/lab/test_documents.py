"""What the pages for readers promise: commands that compose, the tables of the code, links that lead somewhere."""

import itertools
import math
import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors import safe_open
from test_configurations import composed

from pds.errors import PDSError
from pds.evaluation.panel import KID_SIZE, LEAST, NAMES, better
from pds.files import ASSETS
from pds.lab import tables
from pds.lab.config import CONF, build, resolved
from pds.lab.reference import choices_of
from pds.lab.tuning import search

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("run", "train", "tune", "excess_noise", "reproduce")


def commands():
    """(script, arguments) of each whole command on the pages; a bare experiment=... is one of run.py."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        scripts = rf"({'|'.join(SCRIPTS)})\.py ([^`\n]+)"
        rows = [(name, rest) for name, rest in re.findall(scripts, text)]
        rows += [("run", rest) for rest in re.findall(r"`(experiment=[^`]+)`", text)] if page.name == "README.md" else []
        for name, rest in rows:
            arguments = shlex.split(rest.partition(" #")[0])
            if all("=" in one or one == "-m" for one in arguments) and not re.search(r"[…|]|=(PATH|PID|FILE)", rest):
                yield name, tuple(arguments)


COMMANDS = sorted(set(commands()))


def points(arguments):
    """The first and the last combination of a sweep, or the one command."""
    parsed = [OverridesParser.create().parse_override(one) for one in arguments if one != "-m"]
    swept = any(one.is_sweep_override() for one in parsed)
    assert swept == ("-m" in arguments)
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in parsed
    ]
    combinations = list(itertools.product(*values))
    return [list(combination) for combination in {combinations[0], combinations[-1]}]


def test_the_commands_are_found():
    found = [name for name, _ in COMMANDS]
    assert all(found.count(name) >= least for name, least in zip(SCRIPTS, (10, 6, 2, 5, 1), strict=True)), found


@pytest.mark.parametrize(
    ("name", "arguments"), COMMANDS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_of_the_pages_composes(name, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("PDS_DATA", str(tmp_path))
    if name == "tune":
        seen = []
        monkeypatch.setattr(search.Tuning, "run", lambda self: seen.append(self.composed(self.default)))
        search.tune([*arguments, f"outputs={tmp_path}"])
        assert len(seen) == 1
        return
    if name == "reproduce":
        monkeypatch.setattr(tables, "plan", lambda *rest: (_ for _ in ()).throw(PDSError("planned")))
        with pytest.raises(PDSError, match="planned"):
            tables.reproduce([*arguments, f"outputs={tmp_path}"])
        return
    for overrides in points(arguments):
        cfg = composed(*overrides, config=name)
        resolved(cfg)
        for part in ("sampler", "filter", "solenoid", "trainer"):
            if cfg.get(part) is not None:
                build(cfg[part])


def rows(page, head):
    """The cells of the table on a page whose head begins with `head`, by the name in the first cell."""
    lines = (ROOT / page).read_text(encoding="utf-8").partition(f"\n| {head} |")[2].splitlines()[2:]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in itertools.takewhile(lambda one: one[:1] == "|", lines)
    ]
    return {first.strip("`").partition("`")[0]: rest for first, *rest in table}


def test_the_measures_have_the_least_images_and_the_direction_of_their_table():
    told = rows("docs/measures.md", "measure")
    least = {name: int(re.match(r"[\d,]+", cells[2])[0].replace(",", "")) for name, cells in told.items()}
    assert least == LEAST | {"kid": KID_SIZE}
    assert {name: cells[1].strip("–") for name, cells in told.items()} == {name: better(f"{name}_x_n1") for name in NAMES}
    # README has the same numbers, those of one row in the order of its measures.
    for measures, numbers in (cells for cells in rows("README.md", "question").values()):
        named = re.findall(r"`(\w+)`", measures)
        counts = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", numbers)]
        assert dict(zip(named, counts if counts[1:] else counts * len(named), strict=True)) == {
            name: least[name] for name in named
        }


def test_every_tracker_and_every_data_set_has_its_row():
    assert rows("docs/trackers.md", "`tracker=`").keys() == choices_of("tracker").keys() - {"several"}
    told = rows("docs/data.md", "`dataset=`")
    assert told.keys() == choices_of("dataset").keys()
    for name, (_, keys, _) in told.items():
        for key, values in re.findall(r"`([\w.]+)`: ([^;(]+)", keys):
            default, *others = values.replace(",", " ").split()
            assert str(OmegaConf.select(composed(f"dataset={name}").dataset, key)) == default, (name, key)
            for other in others:
                build(composed(f"dataset={name}", f"dataset.{key}={other}").dataset)


def test_every_file_that_ships_has_its_row_with_the_size_of_its_network():
    told = rows("docs/weights.md", "file")
    for path in ASSETS.glob("*.*"):
        if path.suffix in (".safetensors", ".npz", ".json"):
            (row,) = (cells for name, cells in told.items() if path.match(name) or path.stem == name)
            if path.suffix == ".safetensors":
                with safe_open(path, "numpy") as file:
                    count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
                (size,) = re.findall(r"([\d.]+) M parameters", row[0])
                assert float(size) == round(count / 1e6, len(size.partition(".")[2])), path.name


def test_every_link_of_the_pages_leads_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    local = [(page, link) for page, link in links if "://" not in link]
    assert len(local) > 10
    assert [(page.name, link) for page, link in local if not (page.parent / link).exists()] == []
