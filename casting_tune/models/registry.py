"""Backbones: a name becomes a network with a one-logit head; its normalisation, its weights, its smallest image.

In: a name of `BACKBONES`, or `timm:NAME` for any other network of timm, and where its weights come
from. Out: an nn.Module whose forward takes normalised inputs [b, in_channels, px, px] to logits
[b]. Must not know of sweeps, stores or training. torch and timm are imported inside functions, so
that names and the listing cost nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casting_tune.errors import UsageError, WeightsError, unknown
from casting_tune.models import light_import, pretrained

if TYPE_CHECKING:
    from torch import nn

TRIED_PX = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)
"""Sides among which a size is looked for that a `timm:` network takes."""

SMALL = "timm:resnet10t"
"""The small network of our own sweep files: it takes every side from the first of `TRIED_PX` on."""

NUMBERS = "equal in numbers"
LAYERS = "equal in layers and parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """What is known of one backbone without building it.

    Attributes:
        timm_name: network and pretrained tag in timm.
        study_name: as the study's tables spell it.
        n_parameters: trainable ones, without top, for three input channels.
        n_statistics: running means and variances of batch norm, which Keras counts as not trainable.
        n_features: channels of its last maps, which the head takes.
        input_px: side at which timm's weights were trained.
        likeness: to Keras' network: with Keras' weights copied in the outputs are equal; or layers and parameters are
            the same, up to biases and scales that batch norm cancels, and padding or stride sit elsewhere.
        min_px: smallest side at which every layer still has an input, and so a training step goes through.
        weights: whether pretrained weights exist for timm.
        cpu_bf16: whether bf16 makes a training step faster on a CPU that has bf16 instructions (one thread, 96 px,
            batch size 8, AMD EPYC with avx512_bf16, torch 2.14: 1.2 to 2.2 times for these; 0.77 to 0.83 for the three
            networks of depthwise convolutions).
        without: a part behind the last maps, in timm's network and not in Keras' without top, that is left out.
    """

    timm_name: str
    study_name: str
    n_parameters: int
    n_statistics: int
    n_features: int
    input_px: int
    likeness: str
    min_px: int = 32
    weights: bool = True
    cpu_bf16: bool = True
    without: str = ""


BACKBONES: dict[str, Backbone] = {
    "xception": Backbone(
        timm_name="legacy_xception.tf_in1k",
        study_name="Xception",
        n_parameters=20_806_952,
        n_statistics=54_528,
        n_features=2048,
        input_px=299,
        likeness=LAYERS,
    ),
    "vgg16": Backbone(
        timm_name="vgg16.tv_in1k",
        study_name="VGG16",
        n_parameters=14_714_688,
        n_statistics=0,
        n_features=512,
        input_px=224,
        likeness=NUMBERS,
        without="pre_logits",
    ),
    "resnet50": Backbone(
        timm_name="resnet50.tv_in1k",
        study_name="ResNet50",
        n_parameters=23_508_032,
        n_statistics=53_120,
        n_features=2048,
        input_px=224,
        likeness=LAYERS,
    ),
    "resnet101v2": Backbone(
        timm_name="resnetv2_101.a1h_in1k",
        study_name="ResNet101V2",
        n_parameters=42_492_480,
        n_statistics=97_664,
        n_features=2048,
        input_px=224,
        likeness=LAYERS,
    ),
    "inceptionv3": Backbone(
        timm_name="inception_v3.tf_in1k",
        study_name="InceptionV3",
        n_parameters=21_785_568,
        n_statistics=34_432,
        n_features=2048,
        input_px=299,
        likeness=LAYERS,
        min_px=75,
    ),
    "inception_resnet_v2": Backbone(
        timm_name="inception_resnet_v2.tf_in1k",
        study_name="InceptionResNetV2",
        n_parameters=54_306_464,
        n_statistics=60_544,
        n_features=1536,
        input_px=299,
        likeness=NUMBERS,
        min_px=75,
    ),
    "mobilenetv2": Backbone(
        timm_name="mobilenetv2_100.ra_in1k",
        study_name="MobileNetV2",
        n_parameters=2_223_872,
        n_statistics=34_112,
        n_features=1280,
        input_px=224,
        likeness=LAYERS,
        cpu_bf16=False,
    ),
    "densenet169": Backbone(
        timm_name="densenet169.tv_in1k",
        study_name="DenseNet169",
        n_parameters=12_484_480,
        n_statistics=158_400,
        n_features=1664,
        input_px=224,
        likeness=NUMBERS,
    ),
    "nasnet_mobile": Backbone(
        timm_name="casting_nasnet_mobile",
        study_name="NASNetMobile",
        n_parameters=4_232_978,
        n_statistics=36_738,
        n_features=1056,
        input_px=224,
        likeness=NUMBERS,
        weights=False,
        cpu_bf16=False,
    ),
    "efficientnetb4": Backbone(
        timm_name="tf_efficientnet_b4.aa_in1k",
        study_name="EfficientNetB4",
        n_parameters=17_548_616,
        n_statistics=125_200,
        n_features=1792,
        input_px=380,
        likeness=NUMBERS,
        cpu_bf16=False,
    ),
}


def build(
    name: str, *, weights: str, dense: int, dropout: float, in_channels: int, seed: int
) -> nn.Module:
    """Return backbone and head as one module, whose forward gives logits [b] of inputs [b, in_channels, px, px].

    Backbone and head draw their initial weights from two streams of the seed; torch's global
    generator is left as it was. A backbone of `BACKBONES` hands its last maps to our global average
    pooling. A `timm:` network pools as it does itself, since some have layers behind the pooling,
    and transformers have tokens.

    Args:
        name: of the backbone.
        weights: `none`, `imagenet` or `local-dir:PATH`.
        dense: width of the dense layer before the logit; 0 is none.
        dropout: rate before the logit, in [0, 1); 0 is none.
        in_channels: 1 or 3; timm sums pretrained first filters over colours for 1.
        seed: of all initial weights.

    Raises:
        UsageError: unknown name, or weights that cannot be meant.
        WeightsError: weights that are not to be had.
    """
    check_name(name)
    from casting_tune.models.heads import Model, make_head

    with _stream(seed, "backbone"):
        network = _network(name, weights, in_channels=in_channels)
    n_features = network.num_features if name in BACKBONES else network.head_hidden_size
    with _stream(seed, "head"):
        head = make_head(n_features, dense=dense, dropout=dropout)
    return Model(backbone=network, head=head)


@cache  # asked once a cell, and a sweep has many cells of a network
def check_name(name: str) -> None:
    """Raise UsageError for a name that is neither in `BACKBONES` nor `timm:` and a network of timm."""
    if name in BACKBONES:
        return
    if not name.startswith("timm:"):
        raise UsageError(
            f"{unknown('backbone', name, BACKBONES)} Other networks of timm are 'timm:NAME'."
        )
    timm_name = name.removeprefix("timm:")
    if timm_name in _written():
        return
    timm = timm_networks()
    network, _, tag = timm_name.partition(".")
    networks = timm.list_models()  # without the old names that timm only maps to new ones, warning
    tags = timm.list_pretrained(f"{network}.*")
    if network in networks and (not tag or timm_name in tags):
        return
    near = difflib.get_close_matches(timm_name, tags if network in networks else networks, n=1)
    hint = (
        f"Did you mean 'timm:{near[0]}'?"
        if near
        else f"timm.list_models() names those of timm {timm.__version__}."
    )
    raise UsageError(f"Unknown backbone '{name}'. {hint}")


@cache
def _written() -> frozenset[str]:
    """Return the networks of timm by its source: its registry holds the same, and importing it takes seconds."""
    package = importlib.util.find_spec("timm")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or [] for file in (Path(folder) / "models").glob("*.py")]
    return frozenset(
        name
        for file in files
        for name in re.findall(r"^@register_model\s+def (\w+)\(", file.read_text("utf-8"), re.M)
    )


@cache
def check_size(name: str, image_px: int) -> None:
    """Raise UsageError where a training step cannot go through with images of this side.

    The smallest sides of `BACKBONES` are known. A `timm:` network is tried on torch's meta device,
    where nothing is computed; some take one size only.
    """
    check_name(name)
    if name in BACKBONES:
        smallest = BACKBONES[name].min_px
        if image_px < smallest:
            raise UsageError(
                f"image_px {image_px} is too small for '{name}': the smallest is {smallest}."
            )
        return
    if name == SMALL and image_px >= TRIED_PX[0]:
        return
    if _takes(name, image_px):
        return
    others = [px for px in TRIED_PX if _takes(name, px)]
    if not others:
        raise UsageError(
            f"'{name}' takes no square images of {TRIED_PX[0]} to {TRIED_PX[-1]} px: use another network."
        )
    way_out = (
        f"the smallest is {others[0]}"
        if image_px < others[0]
        else f"it takes {', '.join(map(str, others))}"
    )
    raise UsageError(
        f"image_px {image_px} does not go through '{name}': {way_out} (of the usual sides)."
    )


def fewest_images(name: str, image_px: int) -> int:
    """Return how many images a training step needs at least to go through the network: 1 or 2.

    Batch normalisation in training needs two values a channel: two images where its maps have one
    pixel. The head has none.
    """
    return 1 if _takes(name, image_px, n_images=1) else 2


@cache
def check_batch(name: str, image_px: int, batch_size: int) -> None:
    """Raise UsageError where a training step cannot go through with so few images of this side.

    Two images always can where the side is right (`check_size`). A last batch of one image joins
    the batch before it (`loader.batches`), so that batches of one image come of batch_size 1 alone.
    """
    if batch_size >= 2 or fewest_images(name, image_px) == 1:
        return
    larger = next((px for px in TRIED_PX if px > image_px and _takes(name, px, n_images=1)), None)
    way_out = f", or image_px = {larger}" if larger else ""
    raise UsageError(
        f"batch_size must be at least 2 for '{name}' at image_px {image_px}, where its batch normalisation gets one "
        f"value per channel and image; got {batch_size}. Use batch_size = 2{way_out}."
    )


@lru_cache(maxsize=4)
def _on_meta(name: str) -> Any:
    """Return a network without weights on torch's meta device, where nothing is computed, ready to train."""
    import torch

    check_name(name)
    with torch.device("meta"), _stream(0, "size"):
        return _network(name, "none", in_channels=3)


def weights_id(name: str, weights: str) -> str:
    """Return what the weights really are, after making sure that they are to be had.

    `imagenet` weights are in the cache, or their server has just said that it has them; nothing is
    downloaded here. A local folder is loaded once. The identities are those of
    `expected_weights_id`.

    Raises:
        UsageError: a name or weights that cannot be meant.
        WeightsError: weights that are not to be had.
    """
    identity = expected_weights_id(name, weights)
    if weights == "imagenet":
        source = _source(name)
        if pretrained.find_cached(source) is None:
            pretrained.ask(source)
    elif weights != "none":
        with _stream(0, "weights"):
            _network(name, weights, in_channels=None)
    return identity


def expected_weights_id(name: str, weights: str) -> str:
    """Return the identity that weights would have, without asking anyone for them.

    `none`, `imagenet:TAG`, or `local-dir:` with 12 hexadecimal digits over config.json and
    model.safetensors.

    Raises:
        UsageError: a name or weights that cannot be meant.
        WeightsError: timm has no weights of this network, or the folder is not there.
    """
    check_name(name)
    if weights == "none":
        return "none"
    if weights == "imagenet":
        known = BACKBONES.get(
            name
        )  # of ours the tag is known, and a plan need not wait two seconds for timm
        return f"imagenet:{known.timm_name if known and known.weights else _source(name).tag}"
    return f"local-dir:{pretrained.fingerprint(weights)}"


def cached() -> dict[str, bool]:
    """Return for each backbone that has timm's weights whether they are in the cache; asks nobody."""
    named = [name for name, known in BACKBONES.items() if known.weights]
    return {name: pretrained.find_cached(_source(name)) is not None for name in named}


def normalisation(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each of three channels, on the scale 0..1.

    They are those of timm's weights of this backbone, also where the weights are `none`; of a local
    folder, those of its config.json.
    """
    check_name(name)
    if weights in {"none", "imagenet"}:
        settings = _settings(name)
        return tuple(settings.mean), tuple(settings.std)
    _, stored = pretrained.read_settings(weights)
    mean, std = stored.get("mean", ()), stored.get("std", ())
    if len(mean) not in {1, 3} or len(std) != len(mean):
        raise WeightsError(
            f"'{weights}': config.json must give mean and std for 1 or 3 channels, not {mean}, {std}."
        )
    each = 3 // len(mean)
    return tuple(mean) * each, tuple(std) * each


def local_dir_config(name: str, weights: str, *, in_channels: int, image_px: int) -> dict[str, Any]:
    """Return the config.json that timm opens beside model.safetensors, of a backbone trained here without classifier.

    Its normalisation is that of `normalisation(name, weights)`.
    """
    mean, std = normalisation(name, weights)
    return {
        "architecture": _timm_name(name).partition(".")[0],
        "num_classes": 0,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [in_channels, image_px, image_px],
            "mean": list(mean),
            "std": list(std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    }


def n_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many parameters train, and how many batch-norm statistics there are, as Keras counts both."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    running = (
        b for path, b in module.named_buffers() if path.endswith(("running_mean", "running_var"))
    )
    return trainable, sum(b.numel() for b in running)


def listing(*, dense: int = 0) -> list[dict[str, Any]]:
    """Return one row for each of `BACKBONES`, for three channels.

    `n_parameters` are those without top; `n_with_head` are all trainable ones with a dense layer of
    that width (0 is none) and the logit. Dropout has none.
    """
    return [
        {
            "name": name,
            "study_name": backbone.study_name,
            "timm_name": backbone.timm_name,
            "n_parameters": backbone.n_parameters,
            "n_with_head": backbone.n_parameters + _n_head(backbone.n_features, dense),
            "n_statistics": backbone.n_statistics,
            "input_px": backbone.input_px,
            "min_px": backbone.min_px,
            "weights": "imagenet" if backbone.weights else "none",
            "likeness": backbone.likeness,
        }
        for name, backbone in BACKBONES.items()
    ]


def _n_head(n_features: int, dense: int) -> int:
    hidden = n_features * dense + dense
    return hidden + (dense or n_features) + 1


def _network(name: str, weights: str, *, in_channels: int | None) -> Any:
    """Return timm's network without its classifier; in_channels None is as many as the weights have."""
    from torch import nn

    pooling = {"global_pool": ""} if name in BACKBONES else {}
    if weights == "none":
        network = timm_networks().create_model(
            _timm_name(name), num_classes=0, in_chans=in_channels, **pooling
        )
    else:
        network = _load(name, weights, in_channels=in_channels)
        network.reset_classifier(0, **pooling)
    if name in BACKBONES and BACKBONES[name].without:
        setattr(network, BACKBONES[name].without, nn.Identity())
    return network


def _load(name: str, weights: str, *, in_channels: int | None) -> Any:
    """Return timm's network with its classifier and with all of its weights loaded.

    timm loads strictly only where the number of classes fits: with num_classes=0, weights that are
    missing in the file would stay random without a word. So the classifier is loaded too, for the
    caller to drop.
    """
    architecture = _timm_name(name).partition(".")[0]
    if weights == "imagenet":
        source = _source(name)
        file, model = pretrained.find_cached(source) or pretrained.fetch(source), _timm_name(name)
    else:
        file, model = None, f"local-dir:{pretrained.find_folder(weights)}"
        stored, _ = pretrained.read_settings(weights)
        if stored != architecture:
            raise WeightsError(
                f"'{weights}' holds weights of '{stored}', and '{name}' needs those of '{architecture}'."
            )
    lenient = {"pretrained_strict": False} if file is None and _is_without(name, weights) else {}
    try:
        overlay = pretrained.overlay(file) if file else {}
        network = timm_networks().create_model(
            model, pretrained=True, in_chans=in_channels, pretrained_cfg_overlay=overlay, **lenient
        )
    except (
        Exception
    ) as error:  # the file comes from elsewhere: timm, safetensors and torch raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"Weights '{weights}' do not fit '{name}' ({reason[:300]}): "
            f"they must be those of a whole '{architecture}' of timm."
        ) from error
    network.pretrained_cfg.pop("state_dict", None)  # timm would keep a second copy of all tensors
    return network


def _is_without(name: str, weights: str) -> bool:
    """Return whether a folder holds all of a backbone but the part that we leave out, as our exports do."""
    part = BACKBONES[name].without if name in BACKBONES else ""
    if not part:
        return False
    import torch

    with torch.device("meta"):
        whole = timm_networks().create_model(_timm_name(name), num_classes=0)
    return pretrained.stored_names(weights) == {
        key for key in whole.state_dict() if not key.startswith(f"{part}.")
    }


def _takes(name: str, image_px: int, *, n_images: int = 2) -> bool:
    """Return whether a training batch of so many images goes through a network."""
    import torch

    network = _on_meta(name)
    try:
        features = network(torch.empty(n_images, 3, image_px, image_px, device="meta"))
    except (
        RuntimeError,
        ValueError,
        AssertionError,
    ):  # torch: too small for a layer; timm: not its one size
        return False
    return bool(features.ndim == (4 if name in BACKBONES else 2) and features.numel() > 0)


def _source(name: str) -> pretrained.Source:
    return pretrained.find_source(name, _settings(name))


def _settings(name: str) -> Any:
    """Return timm's PretrainedCfg of a backbone: mean, std, and where its weights are."""
    return timm_networks().get_pretrained_cfg(_timm_name(name))


def _timm_name(name: str) -> str:
    return BACKBONES[name].timm_name if name in BACKBONES else name.removeprefix("timm:")


def timm_networks() -> Any:
    """Return timm, with our NASNet-A Mobile among its networks."""
    with light_import.imports():
        import timm

    from casting_tune.models import nasnet

    nasnet.register()
    return timm


@contextmanager
def _stream(seed: int, part: str) -> Iterator[None]:
    """Give torch's CPU generator a seed of its own for this part, and its old state back afterwards."""
    import torch

    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
        yield
