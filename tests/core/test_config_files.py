"""The package's configs by path and by name."""

import pytest

from ssql_det.core.config import read_config_file
from ssql_det.core.config_files import config_folder, describe_config, find_config, list_configs
from ssql_det.core.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mini", "pretrain/mini.yaml"),
        ("mini.yaml", "pretrain/mini.yaml"),
        ("pretrain/mini", "pretrain/mini.yaml"),
        ("configs/pretrain/mini.yaml", "pretrain/mini.yaml"),
        ("./configs/pretrain/mini.yaml", "pretrain/mini.yaml"),
        ("a", "pretrain/table8/a.yaml"),  # not table8/switches/a
        ("table8/switches/a", None),
        ("pretrain/table8/switches/a", "pretrain/table8/switches/a.yaml"),
        ("table6/ssql", "detection/table6/ssql.yaml"),
        ("toy_voc_narrow_c4", "detection/toy_voc_narrow_c4.yaml"),
    ],
)
def test_a_name_is_found(name, file):
    if file is None:
        with pytest.raises(UserError):
            find_config(name)
    else:
        assert find_config(name) == config_folder() / file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ssql", "several configs are called ssql: detection/table6/ssql, detection/table7/ssql; name one of these"),
        ("toy_voc_narow_c4", "there is no config file toy_voc_narow_c4; did you mean 'toy_voc_narrow_c4'?"),
        ("configs/pretrain/imagenet_r18_sqsl.yaml", "did you mean 'pretrain/imagenet_r18_ssql'?"),
        ("/no/mini", r"there is no config file /no/mini; check the path \(`ssql-det configs` lists the package's\)"),
        ("../mini", "there is no config file ../mini; did you mean 'mini'"),
    ],
)
def test_a_name_that_is_not_found(name, message):
    with pytest.raises(UserError, match=message):
        find_config(name)


def test_a_file_of_the_user_comes_first(tmp_path):
    (tmp_path / "mini").write_text("SEED: 1\n")
    assert read_config_file("mini") == {"SEED": 1}


def test_a_folder_of_that_name_does_not_hide_the_config(tmp_path):
    (tmp_path / "mini").mkdir()
    assert find_config("mini") == config_folder() / "pretrain/mini.yaml"


@pytest.mark.parametrize("name", list_configs())
def test_each_config_begins_with_a_sentence_and_is_found_by_its_name(name):
    assert describe_config(name).endswith((".", ")"))
    assert 10 < len(describe_config(name)) < 120
    assert read_config_file(name)
