from __future__ import annotations

import pytest

from casting_tune.errors import UsageError
from casting_tune.models import layer_table


def test_efficientnetb4_with_the_studys_head_has_the_decks_layers_and_counts() -> None:
    found = layer_table.summarise("efficientnetb4", head="dense1024,dropout", image_px=512)
    # the deck: 17,673,823 + 1,836,032 + 1,025; 7 of its 125,207 statistics are constants of Keras'
    # normalisation layer
    assert [(layer.name, layer.shape, layer.n_parameters) for layer in found.layers] == [
        ("input", (512, 512, 3), 0),
        ("efficientnetb4", (16, 16, 1792), 17_673_816),
        ("global_average_pooling", (1792,), 0),
        ("dense", (1024,), 1_836_032),
        ("dropout", (1024,), 0),
        ("logit", (1,), 1_025),
    ]
    assert (found.n_trainable, found.n_statistics) == (19_385_673, 125_200)


def test_efficientnetb4_with_a_logit_alone_has_the_decks_count() -> None:
    assert layer_table.summarise("efficientnetb4", head="", image_px=512).n_trainable == 17_550_409


@pytest.mark.parametrize("head", ["dense", "dense0", "drop", "dense8,dense8", "dropout,dropout"])
def test_a_head_that_is_invalid_is_refused(head: str) -> None:
    with pytest.raises(UsageError, match="dense1024,dropout"):
        layer_table.parse_head(head)
