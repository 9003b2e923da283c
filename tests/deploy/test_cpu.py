"""The one warning on a CPU without fast, exact 8-bit products; elsewhere, and if it is not known, there is none."""

import logging
from dataclasses import replace

import pytest
from support.deploy.onnx_files import METADATA, write_colour_detector

from ssql_det.deploy import cpu
from ssql_det.deploy.cpu import CPU, describe_cpu, warn_without_vnni
from ssql_det.deploy.detector import Detector

X86 = "processor\t: 0\nmodel name\t: Xeon {name}\nflags\t\t: fpu sse2 {flags}\n\nprocessor\t: 1\nmodel name\t: other\n"
ARM = "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"
FILES = {
    "AVX2": (X86.format(name="E5", flags="avx avx2"), True),
    "AVX-512 without VNNI": (X86.format(name="Skylake", flags="avx2 avx512f avx512bw"), True),
    "AVX-512 VNNI": (X86.format(name="Ice Lake", flags="avx2 avx512f avx512_vnni"), False),
    "AVX VNNI": (X86.format(name="Alder Lake", flags="avx2 avx_vnni"), False),
    "ARM": (ARM, False),
    "no flags": ("processor\t: 0\n", False),
    "another system": (None, False),
}


@pytest.fixture(autouse=True)
def fresh():
    """No test sees what another has found."""
    yield
    for function in (describe_cpu, warn_without_vnni):
        function.cache_clear()


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Be on the machine with this content of /proc/cpuinfo; ``None``: there is no such file."""

    def move(text):
        for function in (describe_cpu, warn_without_vnni):
            function.cache_clear()
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")

    return move


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_integers_warns_once_where_products_saturate(name, on, tmp_path, caplog):
    text, saturates = FILES[name]
    on(text)
    integers = write_colour_detector(tmp_path / "integers.onnx", replace(METADATA, bits="8w8a"))
    floats = write_colour_detector(tmp_path / "float.onnx")
    with caplog.at_level(logging.WARNING):
        Detector(floats, threads=1)
        assert not caplog.records
        for _ in range(3):
            Detector(integers, threads=1)
    warnings = [record for record in caplog.records if record.name == "ssql_det.deploy.cpu"]
    assert len(warnings) == saturates
    if saturates:
        assert "has no VNNI" in warnings[0].getMessage()
        assert "Xeon" in warnings[0].getMessage()


def test_a_file_that_cannot_be_opened_warns_of_nothing_else(on, tmp_path, caplog):
    on(FILES["AVX2"][0])
    path = write_colour_detector(tmp_path / "integers.onnx", replace(METADATA, bits="4w4a"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Exception, match="damaged"):
        Detector(path, threads=1)
    assert not caplog.records


def test_the_name_and_the_flags_of_the_first_core():
    assert CPU.parse(FILES["AVX VNNI"][0]) == CPU("Xeon Alder Lake", ("avx2", "avx_vnni"))
    assert CPU.parse(ARM, "aarch64") == CPU("aarch64", ("asimddp",))
    assert str(CPU.parse(X86.format(name="E5", flags=""))) == "Xeon E5"
