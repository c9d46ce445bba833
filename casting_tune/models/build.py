"""From the name of a backbone to a network with a one-logit head, its weights and normalisation.

Input: a name of `registry.BACKBONES` or `timm:NAME`, and the source of its weights. Output: a model
from normalised inputs [b, in_channels, px, px] to logits [b]. Knows no sweeps, stores or training.
Functions import torch and timm when they are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from casting_tune import seeds
from casting_tune.errors import WeightsError
from casting_tune.models import pretrained
from casting_tune.models.registry import BACKBONES, check_name, timm_name, timm_networks

if TYPE_CHECKING:
    import torch
    from torch import nn


def model(
    name: str, *, weights: str, dense: int, dropout: float, in_channels: int, seed: int
) -> nn.Module:
    """Return backbone and head as one module.

    Backbone and head draw their initial weights from separate random generators; torch's global
    generator is unchanged. A backbone of `BACKBONES` returns its last maps, which our global
    average pooling reduces. A `timm:` network keeps its own pooling, because some networks have
    layers after it, and transformers have tokens.

    Args:
        name: of the backbone.
        weights: `none`, `imagenet` or `local-dir:PATH`.
        dense: width of the dense layer before the logit; 0 is none.
        dropout: rate before the logit, in [0, 1); 0 is none.
        in_channels: 1 or 3; for 1, timm sums the pretrained first filters over the colours.
        seed: of all initial weights.

    Raises:
        UsageError: unknown backbone, or invalid weights.
        WeightsError: the weights are not available.
    """
    check_name(name)
    from casting_tune.models.heads import Model, make_head

    with random_stream(seed, "backbone"):
        backbone = timm_network(name, weights, in_channels=in_channels)
    n_features = backbone.num_features if name in BACKBONES else backbone.head_hidden_size
    with random_stream(seed, "head"):
        head = make_head(n_features, dense=dense, dropout=dropout)
    return Model(backbone=backbone, head=head)


def weights_id(name: str, weights: str) -> str:
    """Return the identity of weights (`expected_weights_id`); check that they are available.

    `imagenet` weights are in the cache, or their server has confirmed that it has them; nothing is
    downloaded. The weights of a local folder are loaded once.

    Raises:
        UsageError: unknown backbone, or invalid weights.
        WeightsError: the weights are not available.
    """
    identity = expected_weights_id(name, weights)
    if weights == "imagenet":
        source = _source(name)
        if pretrained.find_cached(source) is None:
            pretrained.check_available(source)
    elif weights != "none":
        with random_stream(0, "weights"):
            timm_network(name, weights, in_channels=None)
    return identity


def expected_weights_id(name: str, weights: str) -> str:
    """Return the identity of weights without a check that they are available.

    It is `none`, `imagenet:TAG`, or `local-dir:` with 12 hexadecimal digits over config.json and
    model.safetensors.

    Raises:
        UsageError: unknown backbone, or invalid weights.
        WeightsError: timm has no weights of this network, or the folder does not exist.
    """
    check_name(name)
    if weights == "none":
        return "none"
    if weights == "imagenet":
        known = BACKBONES.get(name)  # its tag is known, so a plan need not import timm (2 s)
        return f"imagenet:{known.timm_name if known and known.weights else _source(name).tag}"
    return f"local-dir:{pretrained.fingerprint(weights)}"


def cached() -> dict[str, bool]:
    """Return for each backbone with pretrained weights whether they are in the cache."""
    named = [name for name, known in BACKBONES.items() if known.weights]
    return {name: pretrained.find_cached(_source(name)) is not None for name in named}


def normalisation(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of three channels, on the scale 0..1.

    They belong to timm's weights of this backbone, even if `weights` is `none`; for a local folder
    they come from its config.json.
    """
    check_name(name)
    if weights in {"none", "imagenet"}:
        settings = _settings(name)
        return tuple(settings.mean), tuple(settings.std)
    _, stored = pretrained.read_settings(weights)
    mean, std = stored.get("mean", ()), stored.get("std", ())
    if len(mean) not in {1, 3} or len(std) != len(mean):
        raise WeightsError(
            f"'{weights}': config.json must give mean and std for 1 or 3 channels; "
            f"got {mean} and {std}."
        )
    each = 3 // len(mean)
    return tuple(mean) * each, tuple(std) * each


def scale_and_offset(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    in_channels: int,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset, [1, in_channels, 1, 1]: inputs = images in 0..1 * scale + offset.

    A network of one channel gets the mean of the three means, and of the three deviations.
    """
    import torch

    means, stds = (
        torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (mean, std)
    )
    if in_channels == 1:
        means, stds = means.mean(1, keepdim=True), stds.mean(1, keepdim=True)
    return 1 / stds, -means / stds


def local_dir_config(name: str, weights: str, *, in_channels: int, image_px: int) -> dict[str, Any]:
    """Return the config.json for the weights of a trained backbone without classifier.

    timm reads it together with model.safetensors. The normalisation is that of
    `normalisation(name, weights)`.
    """
    mean, std = normalisation(name, weights)
    return {
        "architecture": timm_name(name).partition(".")[0],
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
    """Return the numbers of trainable parameters and of batch-norm statistics, as in Keras."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    running = (
        b for path, b in module.named_buffers() if path.endswith(("running_mean", "running_var"))
    )
    return trainable, sum(b.numel() for b in running)


def timm_network(name: str, weights: str, *, in_channels: int | None) -> Any:
    """Return timm's network without classifier; in_channels None is that of the weights."""
    from torch import nn

    pooling = {"global_pool": ""} if name in BACKBONES else {}
    if weights == "none":
        network = timm_networks().create_model(
            timm_name(name), num_classes=0, in_chans=in_channels, **pooling
        )
    else:
        network = _load(name, weights, in_channels=in_channels)
        network.reset_classifier(0, **pooling)
    if name in BACKBONES and BACKBONES[name].without:
        setattr(network, BACKBONES[name].without, nn.Identity())
    return network


@contextmanager
def random_stream(seed: int, part: str) -> Iterator[None]:
    """Seed torch's CPU generator for one part of the network; restore its state afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.initial_weights(seed, part))
        yield


def _load(name: str, weights: str, *, in_channels: int | None) -> Any:
    """Return timm's network with its classifier and with all of its weights loaded.

    timm loads strictly only if the number of classes fits: with num_classes=0, weights that are
    missing in the file would stay random without a message. So the classifier is loaded too, and
    the caller removes it.
    """
    architecture = timm_name(name).partition(".")[0]
    if weights == "imagenet":
        source = _source(name)
        file, model = pretrained.find_cached(source) or pretrained.fetch(source), timm_name(name)
    else:
        file, model = None, f"local-dir:{pretrained.find_folder(weights)}"
        stored, _ = pretrained.read_settings(weights)
        if stored != architecture:
            raise WeightsError(
                f"'{weights}' contains weights of '{stored}'; '{name}' requires those of "
                f"'{architecture}'."
            )
    lenient = {"pretrained_strict": False} if file is None and _is_without(name, weights) else {}
    try:
        overlay = pretrained.overlay(file) if file else {}
        network = timm_networks().create_model(
            model, pretrained=True, in_chans=in_channels, pretrained_cfg_overlay=overlay, **lenient
        )
    # the file comes from elsewhere: timm, safetensors and torch raise any exception
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"Weights '{weights}' do not fit '{name}' ({reason[:300]}): "
            f"use weights of a complete '{architecture}' of timm."
        ) from error
    network.pretrained_cfg.pop("state_dict", None)  # timm would keep a second copy of all tensors
    return network


def _is_without(name: str, weights: str) -> bool:
    """Return whether a folder, as our exports, has all tensors except the part that we remove."""
    part = BACKBONES[name].without if name in BACKBONES else ""
    if not part:
        return False
    import torch

    with torch.device("meta"):
        whole = timm_networks().create_model(timm_name(name), num_classes=0)
    return pretrained.stored_names(weights) == {
        key for key in whole.state_dict() if not key.startswith(f"{part}.")
    }


def _source(name: str) -> pretrained.Source:
    return pretrained.find_source(name, _settings(name))


def _settings(name: str) -> Any:
    """Return timm's PretrainedCfg of a backbone: mean, std, and the address of its weights."""
    return timm_networks().get_pretrained_cfg(timm_name(name))
