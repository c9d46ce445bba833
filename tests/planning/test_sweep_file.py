from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from casting_tune.errors import UsageError
from casting_tune.planning import sweep_file

HEAD = 'question = "?"\n[fixed]\nbackbone = "vgg16"\nweights = "none"\n'


def write(folder: Path, text: str, name: str = "mine") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def test_every_sweep_in_the_folder_is_found_by_name_and_reads() -> None:
    files = {path.stem for path in (Path(__file__).parent.parent.parent / "sweeps").glob("*.toml")}
    assert set(sweep_file.names()) == files
    for name in files:
        assert sweep_file.read(sweep_file.find(name)).question


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question = 1", "'question': Input should be a valid string"),
        ('question = "?"\naxis = 1', "Unknown key 'axis'. Did you mean 'axes'?"),
        (HEAD + "[[when]]\nmatch = { bakcbone = 'x' }\nset = {}", "Did you mean 'backbone'?"),
        (HEAD + "[[when]]\nmatch = {}\nset = { epoch = 7 }", "Did you mean 'epochs'?"),
        (HEAD + "[quick]\nonly = { batchsize = [1] }", "Did you mean 'batch_size'?"),
        (HEAD + "[quick]\nset = { epoch = 1 }", "Did you mean 'epochs'?"),
        (
            HEAD + "[[study]]\npart = 1\naxis = 'backbon'\ncolumns = ['f1']\nrows = {}",
            "Did you mean 'backbone'?",
        ),
        (
            HEAD + "[[study]]\npart = 1\naxis = 'seed'\ncolumns = ['f1']\nrows = { x = [1, 2] }",
            "2 figures for 1",
        ),
        ("question = ?", "is not valid TOML"),
        ("question = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ('type = "gird"\n' + HEAD, "'type'"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweep_file.read(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_sweep_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'backbone_grid'"):
        sweep_file.find("backbone_gird")
    with pytest.raises(UsageError, match="not found"):
        sweep_file.find("nowhere/x.toml")


def test_a_sweeps_name_cannot_lead_out_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="start with a letter"):
        sweep_file.find(str(write(tmp_path, HEAD, name="..evil")))


def test_a_sweep_file_without_read_permission_is_not_called_missing(
    tmp_path: Path, refuse: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('question = "?"')
    refuse(file)
    with pytest.raises(UsageError, match=f"^Cannot read '{file}': permission denied"):
        sweep_file.read(file)

    def closed(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)  # as in a folder without search permission
    with pytest.raises(UsageError, match=f"^Cannot read '{file}': permission denied"):
        sweep_file.find(str(file))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert sweep_file.read(file).fixed["backbone"] == "vgg16"
