"""The command line and the reference page show the options as their signatures and docstrings state them."""

import re

import pytest
from command_line import started

import pds
from pds.errors import PDSError
from pds.lab import schema
from pds.lab.cli import prepare
from pds.lab.config import CONF
from pds.lab.reference import GROUPS, choices_of, help_text, meanings, options_table, page
from pds.lab.schema import CHOICES, PROGRAMS, PartialTarget


def targets():
    for choices in CHOICES.values():
        for choice in choices.values():
            yield (choice.target, choice.given) if isinstance(choice, PartialTarget) else (choice, ())
    yield from ((program, ()) for program, _, _ in PROGRAMS.values())


@pytest.fixture(autouse=True, scope="module")
def known():
    prepare()


def test_the_reference_page_is_up_to_date():
    written = (CONF.parent / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == page(), "run python experiments/tools/reference.py"


def test_every_option_has_its_meaning():
    untold = []
    for target, given in targets():
        told = meanings(target)
        names = [name for name, *_ in options_table(target, given)]
        untold += [f"{target.__name__}.{name}" for name in names if not told.get(name) or told[name].startswith("see ")]
    assert not untold


def test_help_tells_values_ranges_and_meanings_of_what_is_chosen():
    told = help_text("run", ["sampler=edm", "sampler.S_noise=1.003", "--help"])
    assert re.search(r"sampler.S_churn=10\n +a number from 0 to 1000000; noise to add", told)
    assert "sampler.S_noise=1.003\n" in told
    assert "sampler.schedule.end=null" in help_text("run", ["sampler=ddim", "--help"])
    assert "table" in help_text("reproduce", ["--help"]) and "seeds=" in help_text("reproduce", ["--help"])
    everything = help_text("run", ["--help"])
    assert "images=256" in everything
    assert "solenoid: fft, none, shift" in everything and "guidance: classifier" in everything
    assert "few_steps_parts" in help_text("reproduce", ["--help"])
    assert "Other keys are overrides" in help_text("tune", ["--help"])


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("tune", ["sampler=edm", "budgets=[10]", "space=sde"]),
        ("reproduce", ["sampler=edm"]),
        ("reproduce", ["table=clean_fid", "small=true", "sampler=edm"]),
        ("run", ["-m", "sampler=edm,lms", "sampler.iterations=5,10"]),
        ("run", ["--multirun", "sampler=glob(edm*)"]),
    ],
)
def test_help_of_a_choice_is_told_by_every_program_and_for_each_choice_of_a_sweep(program, given):
    told = help_text(program, [*given, "--help"])
    assert told.count("sampler.S_churn=10\n") == 1
    assert told.count("\nsampler: ") == ("sampler=edm,lms" in given)


def test_help_needs_nothing_that_was_registered_before():
    """As in `tune.py`, which answers before it prepares."""
    done = started("-c", "from pds.lab.reference import help_text; print(help_text('tune', ['sampler=edm', '--help']))")
    assert "sampler.S_churn=10" in done.stdout, done.stderr


def test_the_version_is_that_of_this_package():
    assert help_text("run", ["model=ncsn_small", "--version"]) == f"PDS lab {pds.__version__}"


def test_the_experiments_are_listed_with_their_first_comment(tmp_path, monkeypatch):
    told = help_text("run", ["--list", "experiments"])
    assert re.search(r"ncsnpp_church/t80_pds +\| A row of the papers, with PDS\.", told)
    assert "@package" not in told and re.search(r"quickstart/ncsn_pds +\| `make run`: ", told)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 3\n")  # a user's, without a comment
    monkeypatch.setattr(schema, "CONF", tmp_path)
    monkeypatch.setattr(schema, "papers", lambda: iter(()))
    assert schema.experiments.__wrapped__() == {"mine": ""}


def test_the_samplers_are_listed_with_their_facts():
    told = help_text("run", ["--list", "samplers"])
    assert max(map(len, told.splitlines())) <= 120, "a terminal has the room"
    table, sources = told.split("Sources:")
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in table.splitlines()) if len(cells) > 1}
    assert rows.keys() >= choices_of("sampler").keys()
    assert [cell.strip() for cell in rows["edm"][2:6]] == ["EDM Heun", "2", "no", "yes"]
    assert [cell.strip() for cell in rows["ddim"][3:6]] == ["1", "no", "no"]
    assert "\n- Karras et al., NeurIPS 2022, Algorithm 2: `edm`\n" in sources
    assert sorted(re.findall(r"`(\w+)`", sources)) == sorted(choices_of("sampler")), "each has one source"


def test_every_group_is_listed_with_a_sentence_a_choice():
    for group in GROUPS:
        choices, told = choices_of(group), help_text("run", ["--list", group])
        assert choices and all(choices.values()), group
        assert all(name in told for name in choices), group


def test_a_group_that_is_none_is_told_the_groups():
    with pytest.raises(PDSError, match=r"--list takes one of dataset, .*, got models of mine"):
        help_text("run", ["--list", "models of mine"])
    assert help_text("run", ["sampler=edm"]) == ""
