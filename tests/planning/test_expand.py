from __future__ import annotations

from pathlib import Path

import pytest

from casting_tune.errors import UsageError
from casting_tune.planning import expand, sweep_file, validate
from casting_tune.toggles import TOGGLES

HEAD = 'question = "?"\n[fixed]\nbackbone = "vgg16"\nweights = "none"\n'


def write(folder: Path, text: str, name: str = "mine") -> str:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("name", "full", "quick"),
    [
        ("architecture_ablation", 7, 7),
        ("augmentation_ablation", 11, 11),
        ("augmentation_search", 40, 8),
        ("backbone_grid", 60, 10),
        ("cpu_baseline", 3, 3),
        ("full_factorial", 330, 6),
        ("grouped_backbones", 50, 10),
        ("grouped_baseline", 18, 6),
        ("grouped_summary", 50, 5),
        ("summary_model", 10, 10),
    ],
)
def test_every_sweep_file_reads_and_has_the_cells_that_it_should(
    name: str, full: int, quick: int
) -> None:
    assert expand.read(name).n_cells == full
    assert expand.read(name, quick=True).n_cells == quick


def test_every_sweep_in_the_folder_expands_both_ways() -> None:
    for name in sweep_file.names():
        assert expand.read(name).n_cells
        assert expand.read(name, quick=True).n_cells


def test_nasnet_mobile_is_at_224_px_without_weights_and_the_others_at_512_with() -> None:
    for cell in expand.read("backbone_grid").cells:
        expected = (224, "none") if cell.config.backbone == "nasnet_mobile" else (512, "imagenet")
        assert (cell.config.image_px, cell.config.weights) == expected


def test_the_grid_goes_through_the_axes_in_the_order_of_the_file() -> None:
    rows = [cell.row for cell in expand.read("backbone_grid").cells]
    assert rows[:4] == [
        "xception, default, batch 2",
        "xception, default, batch 4",
        "xception, default, batch 8",
        "xception, additional, batch 2",
    ]
    assert rows[-1] == "efficientnetb4, additional, batch 8"


def test_the_studys_figures_are_attached_to_their_cells() -> None:
    cells = {cell.row: cell.study for cell in expand.read("backbone_grid").cells}
    assert cells["xception, default, batch 4"] == {
        "accuracy": 99.44,
        "recall": 100,
        "f1": 0.99,
        "epoch_s": 194,
    }
    assert cells["nasnet_mobile, default, batch 8"] == {"epoch_s": 42}
    assert cells["vgg16, additional, batch 4"] == {}
    assert sum("accuracy" in study for study in cells.values()) == 10
    assert sum("epoch_s" in study for study in cells.values()) == 30


def test_the_studys_rows_of_parts_1_and_2_carry_their_figures_in_its_order() -> None:
    part1 = expand.read("architecture_ablation").cells
    assert [cell.study["accuracy"] for cell in part1] == [
        98.46,
        98.88,
        98.46,
        98.88,
        99.16,
        99.72,
        98.74,
    ]
    head = [(cell.config.dense, cell.config.dropout, cell.config.batch_size) for cell in part1]
    assert head == [
        (0, 0, 8),
        (1024, 0.2, 8),
        (0, 0, 4),
        (0, 0.2, 4),
        (1024, 0, 4),
        (1024, 0.2, 4),
        (1024, 0.2, 4),
    ]
    part2 = expand.read("augmentation_ablation").cells
    assert [cell.study["accuracy"] for cell in part2] == [
        99.16,
        97.77,
        99.16,
        97.91,
        99.3,
        99.58,
        99.44,
        99.16,
        99.44,
        99.44,
        99.44,
    ]
    assert [len(cell.config.toggles) for cell in part2] == [0, 2, 9, 7, 8, 8, 8, 8, 8, 8, 8]


def test_each_seed_has_the_studys_figures_of_its_training_and_their_means() -> None:
    cells = expand.read("summary_model").cells
    assert [cell.study["accuracy@0.1"] for cell in cells][7] == 92.46
    assert [cell.study["recall@0.5"] for cell in cells][4] == 99.62
    assert {cell.study["mean_accuracy@0.5"] for cell in cells} == {98.895}
    assert {(cell.row, cell.config.backbone) for cell in cells} == {
        ("efficientnetb4", "efficientnetb4")
    }


def test_an_invalid_fold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='fold must be 0 with split = "official"; got 1'):
        validate.check(expand.read(write(tmp_path, HEAD + "[axes]\nfold = [0, 1]")))
    with pytest.raises(UsageError, match="fold must be less than n_folds = 5; got 5"):
        validate.check(
            expand.read(write(tmp_path, HEAD + 'split = "grouped"\n[axes]\nfold = [0, 5]'))
        )


def test_quick_cells_have_no_published_time_and_overridden_cells_no_figures() -> None:
    assert not any(cell.study for cell in expand.read("backbone_grid", quick=True).cells)
    assert [len(cell.study) for cell in expand.read("architecture_ablation", quick=True).cells] == [
        3
    ] * 7
    assert not any(
        cell.study for cell in expand.read("backbone_grid", overrides=["epochs=3"]).cells
    )


def test_several_only_of_one_axis_add_up_and_those_of_two_axes_must_both_hold() -> None:
    sweep = expand.read(
        "backbone_grid", only=["backbone=vgg16", "batch_size=4", "backbone=resnet50"]
    )
    assert [cell.label for cell in sweep.cells] == [
        "vgg16, default, batch 4",
        "vgg16, additional, batch 4",
        "resnet50, default, batch 4",
        "resnet50, additional, batch 4",
    ]


def test_an_error_about_only_names_the_selection_of_quick_too() -> None:
    with pytest.raises(
        UsageError, match=r"matches --quick \(.*batch_size=8\) and --only batch_size=4\. Use"
    ):
        expand.read("backbone_grid", quick=True, only=["batch_size=4"])


def test_only_picks_cells_and_set_changes_the_configuration() -> None:
    sweep = expand.read(
        "backbone_grid", only=["backbone=resnet50,vgg16", "batch_size=4"], overrides=["epochs=3"]
    )
    assert [cell.row for cell in sweep.cells] == [
        "vgg16, default, batch 4",
        "vgg16, additional, batch 4",
        "resnet50, default, batch 4",
        "resnet50, additional, batch 4",
    ]
    assert {cell.config.epochs for cell in sweep.cells} == {3}


def test_a_leave_one_out_axis_is_eleven_settings(tmp_path: Path) -> None:
    cells = expand.read(write(tmp_path, HEAD + '[axes]\naugmentation = ["leave_one_out"]')).cells
    assert len(cells) == 11
    assert [len(cell.config.toggles) for cell in cells] == [0, 9, *[8] * 9]


def test_an_ablation_of_nine_toggles_is_eleven_cells_never_512(tmp_path: Path) -> None:
    axes = "\n".join(f"{toggle} = [true, false]" for toggle in TOGGLES)
    cells = expand.read(write(tmp_path, 'type = "ablation"\n' + HEAD + "[axes]\n" + axes)).cells
    assert [cell.row for cell in cells] == ["all", "none", *(f"no {toggle}" for toggle in TOGGLES)]
    assert set(TOGGLES) - set(cells[2].config.toggles) == {"hue"}


def test_one_at_a_time_changes_one_axis_from_the_first_values(tmp_path: Path) -> None:
    text = 'type = "one_at_a_time"\n' + HEAD + "[axes]\nbatch_size = [4, 8]\ndense = [0, 64, 1024]"
    cells = expand.read(write(tmp_path, text)).cells
    assert [(cell.row, cell.config.batch_size, cell.config.dense) for cell in cells] == [
        ("base", 4, 0),
        ("batch 8", 8, 0),
        ("dense 64", 4, 64),
        ("dense 1024", 4, 1024),
    ]


def test_cases_are_named_rows_and_repeat_over_seeds(tmp_path: Path) -> None:
    text = (
        'type = "cases"\n' + HEAD + "[axes]\nseed = [0, 1]\n"
        '[[cases]]\nlabel = "No Dense"\nset = { dense = 0 }\n'
        '[[cases]]\nlabel = "Dense"\nset = { dense = 8 }'
    )
    cells = expand.read(write(tmp_path, text)).cells
    assert [(cell.row, cell.label, cell.config.seed) for cell in cells] == [
        ("No Dense", "No Dense, seed 0", 0),
        ("No Dense", "No Dense, seed 1", 1),
        ("Dense", "Dense, seed 0", 0),
        ("Dense", "Dense, seed 1", 1),
    ]


def test_a_label_names_the_folder_of_weights_without_its_path(tmp_path: Path) -> None:
    axes = '[axes]\nweights = ["none", "local-dir:/home/ada/mine"]\n'
    cells = expand.read(
        write(tmp_path, f'type = "grid"\n{HEAD.replace(chr(10) + "weights", chr(10) + "# ")}{axes}')
    ).cells
    assert [cell.label for cell in cells] == ["none", "local-dir:mine"]
    assert [cell.config.weights for cell in cells] == ["none", "local-dir:/home/ada/mine"]


def test_a_condition_sets_what_it_says_where_it_holds(tmp_path: Path) -> None:
    text = (
        HEAD + "[axes]\nbatch_size = [4, 8]\n"
        "[[when]]\nmatch = { batch_size = 8 }\nset = { image_px = 64 }"
    )
    assert [cell.config.image_px for cell in expand.read(write(tmp_path, text)).cells] == [512, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'question = "?"\n[axes]\nbatch_sise = [1]',
            "Unknown setting 'batch_sise'. Did you mean 'batch_size'?",
        ),
        (HEAD + "epocs = 3", "Unknown setting 'epocs'. Did you mean 'epochs'?"),
        (HEAD + 'epochs = "3"', "epochs: Input should be a valid integer; got '3'"),
        (HEAD + "epochs = true", "epochs: Input should be a valid integer; got True"),
        (HEAD + "base_lr = nan", "base_lr"),
        (HEAD + "base_lr = -1", "base_lr: Input should be greater than 0; got -1"),
        (HEAD + "dropout = 1.0", "dropout: Input should be less than 1; got 1.0"),
        (HEAD + 'hue = "yes"', "toggle 'hue' must be true or false; got 'yes'"),
        (HEAD + 'augmentation = "defualt"', "default"),
        (HEAD + "augmentation = [1, 2]", "augmentation must be text such as"),
        (HEAD + "seed = 9223372036854775808", "seed: Input should be less than 4294967296"),
        (
            'type = "cases"\n'
            + HEAD
            + "[[cases]]\nlabel = 'a'\nset = {}\n[[cases]]\nlabel = 'a'\nset = { dense = 8 }",
            "two cells have the label 'a'",
        ),
        (HEAD + "[axes]\nseed = []", "axis 'seed' is empty"),
        (HEAD + "[axes]\nseed = [1, 1]", "axis 'seed' contains 1 twice"),
        (HEAD + '[axes]\nbackbone = ["vgg16"]', "'backbone' is in both [fixed] and [axes]"),
        (
            HEAD + '[axes]\naugmentation = ["no flip hue", "no hue flip"]',
            "have the same configuration",
        ),
        ('question = "?"', "backbone is missing"),
        (HEAD.replace("vgg16", "vgg17"), "Unknown backbone 'vgg17'. Did you mean 'vgg16'?"),
        (HEAD.replace("vgg16", "inceptionv3") + "image_px = 64", "75"),
        (
            HEAD.replace('"none"', '"imagenett"'),
            "weights must be 'imagenet', 'none' or 'local-dir:DIR'",
        ),
        (
            HEAD + f"[axes]\nseed = {list(range(1001))}\nepochs = {list(range(1, 1001))}",
            "limit of 1,000,000",
        ),
        ('type = "cases"\n' + HEAD, "requires at least one [[cases]]"),
        (
            'type = "repeats"\n' + HEAD + "[axes]\nepochs = [1, 2]",
            "supports only the axes seed and fold",
        ),
        (
            'type = "ablation"\n' + HEAD + "[axes]\nepochs = [1, 2, 3]",
            "at least two axes with two values",
        ),
    ],
)
def test_an_invalid_cell_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate.check(expand.read(write(tmp_path, text)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("only", "overrides", "message"),
    [
        (["backbone"], [], "--only requires axis=value"),
        (["backbone=vgg17"], [], "Did you mean 'vgg16'?"),
        (["batchsize=4"], [], "Did you mean 'batch_size'?"),
        ([], ["epochs"], "--set requires setting=value"),
        ([], ["epoch=3"], "Did you mean 'epochs'?"),
        ([], ["batch_size=4"], "is an axis of this sweep. Select values with --only"),
        ([], ["epochs=x"], "valid integer"),
        ([], ["epochs=3", "epochs=4"], "'epochs' is set twice"),
        (["flip=true"], [], "'flip' is the same for every cell"),
    ],
)
def test_invalid_options_are_errors(only: list[str], overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate.check(expand.read("backbone_grid", only=only, overrides=overrides))


def test_how_strong_a_toggle_is_makes_no_other_cell_where_it_is_off(tmp_path: Path) -> None:
    axes = '[axes]\naugmentation = ["default", "only rotation"]\nrotation_deg = [20.0]'
    off, on = expand.read(write(tmp_path, HEAD + axes)).cells
    assert (off.config.rotation_deg, on.config.rotation_deg) == (45.0, 20.0)
    with pytest.raises(UsageError, match="have the same configuration"):
        expand.read(write(tmp_path, HEAD + "[axes]\nrotation_deg = [10.0, 20.0]"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rotation_deg = 181.0", "less than or equal to 180"),
        ("shift_share = 1.0", "less than 1"),
        ("hue_turns = 0.6", "less than or equal to 0.5"),
        ("contrast_low = 1.1", "less than or equal to 1"),
        ("contrast_high = 0.9", "greater than or equal to 1"),
        ("rotation = 30", "toggle 'rotation' must be true or false"),
        ("rotation_degrees = 30.0", "Did you mean 'rotation_deg'"),
    ],
)
def test_a_magnitude_out_of_its_range_is_an_error(
    tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        expand.read(write(tmp_path, HEAD + setting))


def test_invalid_cells_are_listed_apart_from_valid_ones_and_a_run_is_an_error(
    tmp_path: Path,
) -> None:
    text = (
        HEAD.replace("image_px = 64", "")
        + '[axes]\nbackbone = ["vgg16", "inceptionv3"]\nimage_px = [64, 32, 128]'
    )
    sweep = expand.read(write(tmp_path, text.replace('backbone = "vgg16"\n', "")))
    assert {(cell.config.backbone, cell.config.image_px) for cell in sweep.cells} >= {
        ("vgg16", 64),
        ("inceptionv3", 128),
    }
    assert len(sweep.cells) + len(sweep.invalid) == 6
    with pytest.raises(
        UsageError,
        match=r"at least 75 for 'inceptionv3'; got 64. 2 cells are invalid in total: --plan",
    ):
        validate.check(sweep)
