import pytest
from fvcore.common.config import CfgNode

from ssql_det.core.config import (
    check_same_config,
    config_keys,
    flatten_config,
    load_config,
    read_saved_config,
    save_config,
)
from ssql_det.core.errors import UserError


def defaults():
    return CfgNode(
        {
            "SEED": 0,
            "NAME": "mini",
            "DEBUG": False,
            "LIMIT": None,
            "OPTIM": {"LR": 0.1, "STEPS": (30, 60), "BETAS": [0.9, 0.999], "WARMUP": {"EPOCHS": 5}},
            "DATA": {"ROOT": ""},
        }
    )


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write


def test_file_over_defaults_and_command_line_over_file(write):
    file = write("a.yaml", "SEED: 1\nOPTIM: {LR: 0.2, WARMUP: {EPOCHS: 0}}\n")
    config = load_config(defaults(), file, ["SEED", "3", "SEED", "2", "OPTIM.STEPS", "(10, 20)"])
    assert (config.SEED, config.NAME) == (2, "mini")
    assert config.OPTIM == {"LR": 0.2, "STEPS": (10, 20), "BETAS": [0.9, 0.999], "WARMUP": {"EPOCHS": 0}}


@pytest.mark.parametrize("file", [None, "empty.yaml"])
def test_no_file_and_an_empty_file_give_the_defaults(write, file):
    path = file and write(file, "# nothing yet\n")
    assert load_config(defaults(), path) == defaults()


def test_the_result_is_frozen_and_the_defaults_are_unchanged():
    tree = defaults()
    config = load_config(tree, overrides=["OPTIM.BETAS", "[0.5, 0.9]"])
    with pytest.raises(AttributeError):
        config.OPTIM.LR = 0.2
    assert tree == defaults()
    tree.OPTIM.LR = 0.2  # the defaults are not frozen


def test_a_file_overrides_its_base(write):
    write("base.yaml", "SEED: 1\nNAME: base\nOPTIM: {LR: 0.5, WARMUP: {EPOCHS: 1}}\n")
    write("more/middle.yaml", "_BASE_: ../base.yaml\nNAME: middle\nOPTIM: {WARMUP: {EPOCHS: 2}}\n")
    config = load_config(defaults(), write("more/top.yaml", "_BASE_: middle.yaml\nOPTIM: {BETAS: [0.5]}\n"))
    assert (config.SEED, config.NAME) == (1, "middle")
    assert config.OPTIM == {"LR": 0.5, "STEPS": (30, 60), "BETAS": [0.5], "WARMUP": {"EPOCHS": 2}}


def test_a_key_with_dots_is_the_same_key(write):
    write("base.yaml", "OPTIM.LR: 0.5\nSEED: 1\n")
    config = load_config(defaults(), write("top.yaml", "_BASE_: base.yaml\nOPTIM: {LR: 0.2}\n"))
    assert (config.OPTIM.LR, config.SEED) == (0.2, 1)


def test_the_last_of_several_bases_wins(write):
    write("one.yaml", "SEED: 1\nNAME: one\n")
    write("two.yaml", "SEED: 2\n_BASE_: one.yaml\n")  # a base may occur twice; that is not a cycle
    config = load_config(defaults(), write("top.yaml", "_BASE_: [one.yaml, two.yaml]\n"))
    assert (config.SEED, config.NAME) == (2, "one")


VALUES = [
    ("OPTIM.LR", "1e-3", 0.001),
    ("OPTIM.LR", "1", 1.0),
    ("SEED", "7", 7),
    ("DEBUG", "True", True),
    ("LIMIT", "100", 100),
    ("OPTIM.STEPS", "[1, 2]", (1, 2)),
    ("NAME", "two words", "two words"),
    ("NAME", "'123'", "123"),
    ("NAME", "'None'", "None"),
    ("NAME", "'1e-3'", "1e-3"),
    ("NAME", "''", ""),
    ("NAME", "ä", "ä"),
]


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_a_value_in_a_file_has_the_type_of_its_default(write, key, text, value):
    *groups, name = key.split(".")
    file = write("a.yaml", "".join(f"{group}:\n  " for group in groups) + f"{name}: {text}\n")
    loaded = get(load_config(defaults(), file), key)
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_a_value_on_the_command_line_has_the_type_of_its_default(key, text, value):
    loaded = get(load_config(defaults(), overrides=[key, text.strip("'")]), key)
    assert (loaded, type(loaded)) == (value, type(value))


def get(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_a_saved_config_loads_as_it_was(tmp_path, key, text, value):
    config = load_config(defaults(), overrides=[key, text.strip("'")])
    path = save_config(flatten_config(config), tmp_path / "run")
    assert path == tmp_path / "run" / "config.yaml"
    assert load_config(defaults(), path) == config


def test_a_saved_config_is_accepted_and_another_is_refused(tmp_path):
    before, now = (load_config(defaults(), overrides=["OPTIM.LR", rate, "NAME", "123"]) for rate in ("0.1", "0.2"))
    save_config(flatten_config(before), tmp_path)
    saved = read_saved_config(tmp_path)
    assert saved == flatten_config(before)
    assert saved["OPTIM.WARMUP.EPOCHS"] == before.OPTIM.WARMUP.EPOCHS
    check_same_config(saved, flatten_config(before), "the run", "try again")
    with pytest.raises(UserError) as refusal:
        check_same_config(saved, flatten_config(now), "the run", "try again")
    assert str(refusal.value) == "the run has OPTIM.LR 0.1 (now 0.2); try again"


RENAMED = {"OPTIM.RATE": ["OPTIM.LR"], "DEPTH": ["OPTIM.STEPS", "OPTIM.BETAS"]}


def test_a_renamed_key_is_refused_with_its_new_name(write):
    file = write("a.yaml", "OPTIM: {RATE: 0.2}\n")
    with pytest.raises(UserError, match=rf"^config key OPTIM\.RATE in {file} is now OPTIM\.LR; write that$"):
        load_config(defaults(), file, (), RENAMED)
    with pytest.raises(UserError, match=r"DEPTH in the command line is now one of OPTIM\.STEPS, OPTIM\.BETAS; write"):
        load_config(defaults(), None, ["DEPTH", "[1, 2]"], RENAMED)


def test_renamed_keys_in_a_saved_config_are_translated(write, caplog):
    write("config.yaml", "OPTIM: {RATE: 0.2}\nDEPTH: [1, 2]\nSEED: 3\n")
    with caplog.at_level("INFO"):
        config = load_config(defaults(), write("top.yaml", "_BASE_: config.yaml\nSEED: 4\n"), (), RENAMED)
    assert (config.OPTIM.LR, config.OPTIM.STEPS, config.OPTIM.BETAS, config.SEED) == (0.2, (1, 2), [1, 2], 4)
    assert "has keys of an earlier version, such as DEPTH" in caplog.text


def test_of_many_differences_five_are_listed():
    with pytest.raises(UserError, match=r"has A 0 \(now 1\), .* E 0 \(now 1\) and 2 more that differ; advice"):
        check_same_config(dict.fromkeys("ABCDEFG", 0), dict.fromkeys("ABCDEFG", 1), "it", "advice")


def test_config_keys_are_full_keys():
    keys = [
        "SEED",
        "NAME",
        "DEBUG",
        "LIMIT",
        "OPTIM.LR",
        "OPTIM.STEPS",
        "OPTIM.BETAS",
        "OPTIM.WARMUP.EPOCHS",
        "DATA.ROOT",
    ]
    assert sorted(config_keys(defaults())) == sorted(keys)


def alias_bomb(pair, depth=30):
    """A few bytes of YAML that expand to 2**depth values: each pair contains the next one twice, once as an alias."""
    text = "1"
    for level in range(depth):
        text = pair.format(text, level)
    return text


MERGE_BOMB = "\n".join(  # nine times nine of nine merged groups, and so on
    ["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 10))]
)
MISTAKES = {
    "unknown key": ("OPTIM: {RL: 1}", "unknown config key OPTIM.RL in {file}; did you mean 'OPTIM.LR'?"),
    "key without a near one": ("ZEBRA: 1", "unknown config key ZEBRA in {file}"),
    "key that is a number": ("5: 1", "unknown config key 5 in {file}"),
    "group": ("OPTIM: 3", "OPTIM in {file}; it is a group, set one of its keys, such as OPTIM.LR"),
    "value as a group": ("SEED: {LR: 1}", "unknown config key SEED.LR in {file}"),
    "word for a number": ("SEED: many", "SEED must be a whole number, got 'many' in {file}; the default is 0"),
    "fraction for an integer": ("SEED: 1.5", "SEED must be a whole number, got 1.5 in {file}; the default is 0"),
    "word for a float": ("OPTIM: {LR: fast}", "OPTIM.LR must be a number, got 'fast' in {file}; the default is 0.1"),
    "flag for a float": ("OPTIM: {LR: true}", "OPTIM.LR must be a number, got True in {file}; the default is 0.1"),
    "number for a word": ("NAME: 3", "NAME must be text, got 3 in {file}; the default is 'mini'"),
    "list": ("- SEED\n- 1", "config file {file} holds a list; it must hold KEY: VALUE pairs"),
    "invalid": ("SEED: [1", "config file {file} is not valid YAML: "),
    "code": (
        "SEED: !!python/object/apply:os.getpid []",
        "config file {file} has a value of YAML's type python/object/apply:os.getpid; write text in quotes, numbers or",
    ),
    "too many digits": (f"SEED: {'9' * 5000}", "config file {file} has a whole number of 5000 digits; most is 40"),
    "too many digits in base 16": (f"SEED: 0x{'f' * 5000}", "has a whole number of 5002 digits"),
    "too many digits in base 60": (f"SEED: 1{':59' * 5000}", "has a whole number of 15001 digits"),
    "nested too deeply": ("[" * 3000, "config file {file} is nested too deeply; write it out flat"),
    "mapping that contains itself": ("OPTIM: &a {LR: *a}", "config file {file} contains itself; write it out without"),
    "list that contains itself": ("OPTIM: {BETAS: &a [*a, *a]}", "config file {file} contains itself"),
    "a date": ("NAME: 2024-01-01", "config file {file} has a value of YAML's type timestamp; write text in quotes"),
    "a set": ("OPTIM: {BETAS: !!set {a}}", "config file {file} has a value of YAML's type set"),
    **{
        f"the tag {tag}": (
            f"NAME: {tag}",
            "config file {file} is not valid YAML: a value does not fit its tag; remove it",
        )
        for tag in ("!!bool x", "!!int ''")
    },
    "alias bomb of keys": (alias_bomb("{{a: &a{1} {0}, b: *a{1}}}"), "config file {file} has more than 10000 keys"),
    "alias bomb of values": (f"OPTIM: {{BETAS: {alias_bomb('[&a{1} {0}, *a{1}]')}}}", "has more than 10000 keys or"),
    "alias bomb of merge keys": (MERGE_BOMB, "config file {file} has more than 10000 keys or values"),
    "too many values": (f"OPTIM: {{BETAS: [{'1, ' * 10_000}]}}", "config file {file} has more than 10000 keys or"),
    "too many bytes": ("#" * (1 << 18) + "\n", "config file {file} has more than 262144 bytes"),
    "NaN": ("OPTIM: {LR: .nan}", "OPTIM.LR must be a number, got nan in {file}; the default is 0.1"),
    "infinity": ("OPTIM: {LR: .inf}", "OPTIM.LR must be 3.4e+38 or less, got inf in {file}"),
    "NaN in a list": ("OPTIM: {BETAS: [0.9, .nan]}", "OPTIM.BETAS must be a list of numbers, got [0.9, nan]"),
    "nothing behind a key": ("SEED:", "SEED must be a whole number, got None in {file}; the default is 0"),
    "NUL in a path": (r'DATA: {ROOT: "a\0"}', "DATA.ROOT must be text without NUL and surrogates, of 4096 characters"),
    "surrogate in a path": (r'DATA: {ROOT: "a\ud800"}', "DATA.ROOT must be text without NUL and surrogates, of 4096"),
    "base that is no path": (
        "_BASE_: [[a.yaml]]",
        "_BASE_ in {file} must be the path of a config file, got ['a.yaml']",
    ),
    "base with NUL": (r'_BASE_: "~\0"', r"_BASE_ in {file} must be the path of a config file, got '~\x00'"),
    "missing base": ("_BASE_: gone.yaml", "there is no config file {folder}/gone.yaml, which _BASE_ in {file} names"),
    "cycle": ("_BASE_: ./a.yaml", "config file {folder}/a.yaml inherits from itself"),
    "base that is a folder": ("_BASE_: .", "config file {folder} is a directory"),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_file_is_one_sentence(write, text, sentence):
    file = write("a.yaml", text)
    with pytest.raises(UserError) as mistake:
        load_config(defaults(), file)
    assert sentence.format(file=file, folder=file.parent) in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_cycle_of_several_files_is_found(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.yaml", "_BASE_: b.yaml")
    write("b.yaml", "_BASE_: c.yaml")
    write("c.yaml", "_BASE_: a.yaml")
    with pytest.raises(UserError, match="inherits from itself"):
        load_config(defaults(), "a.yaml")


def test_a_graph_of_bases_that_multiplies_ends(write):
    for number in range(40):
        write(f"{number}.yaml", f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]\n")
    write("40.yaml", "SEED: 1\n")
    with pytest.raises(UserError, match=r"config file .*0\.yaml inherits from more than 50 files; leave out a _BASE_"):
        load_config(defaults(), write("0.yaml", "_BASE_: [1.yaml, 1.yaml]\n"))


def test_a_merge_key_is_read(write):
    config = load_config(defaults(), write("a.yaml", "OPTIM: {<<: {LR: 0.2, BETAS: [0.5]}, LR: 0.3}\n"))
    assert (config.OPTIM.LR, config.OPTIM.BETAS) == (0.3, [0.5])


def test_bytes_that_are_not_utf8_are_one_sentence(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"NAME: \xff\xfe")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(defaults(), tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["OPTIM.RL", "1"], "unknown config key OPTIM.RL in the command line; did you mean 'OPTIM.LR'?"),
        (["OPTIM", "1"], "OPTIM in the command line; it is a group, set one of its keys, such as OPTIM.LR"),
        (["SEED", "many"], "SEED must be a whole number, got 'many' in the command line; the default is 0"),
        (["SEED", "9" * 5000], "SEED must be a whole number, got '999"),
        (["SEED", "0x" + "f" * 5000], "SEED must be 4294967296 or less, got an integer of thousands of digits"),
        (["OPTIM.LR", "0x" + "f" * 5000], "OPTIM.LR must be 3.4e+38 or less, got inf"),
        (["OPTIM.BETAS", "[" * 90 + "]" * 90], "OPTIM.BETAS must be a list of numbers, got [[["),
        (["OPTIM.BETAS", "+" * 9000 + "1"], "OPTIM.BETAS must be a list of numbers, got '+++"),
        (["OPTIM.BETAS", "1," * 20_000], "OPTIM.BETAS must be a list of at most 10000 values, got [1, 1, 1"),
        (["OPTIM.STEPS", "{1, 2}"], "OPTIM.STEPS must be a list of whole numbers, got {1, 2}"),
        (
            ["NAME", "a\udcff\ud800"],
            r"NAME must be text without NUL and surrogates, of 4096 characters at most, got 'a",
        ),
        (["SEED", "1", "NAME"], "KEY VALUE pairs, but 'NAME' has no value"),
        (["SEED", "1", "--resume"], "--resume comes after KEY VALUE pairs; move it before them"),
        (["_BASE_", "a.yaml"], "unknown config key _BASE_ in the command line"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(overrides, sentence):
    with pytest.raises(UserError) as mistake:
        load_config(defaults(), overrides=overrides)
    assert sentence in str(mistake.value)


@pytest.mark.parametrize(("name", "hint"), [("gone.yaml", "no config file"), (".", "is a directory")])
def test_a_missing_file_and_a_folder_are_one_sentence(tmp_path, name, hint):
    with pytest.raises(UserError, match=f"{hint}") as mistake:
        load_config(defaults(), tmp_path / name)
    assert str(tmp_path / name) in str(mistake.value)
