"""A backbone with an embedding and a classifier on top, and which of its layers learn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deepfeat.backbones import Backbone
from deepfeat.backbones.manifest import MODEL_NAME
from deepfeat.errors import BackboneError, UsageError
from deepfeat.provenance import SCORES
from deepfeat.runtimes.keras import as_mixed, keras, layer_output, ops, pool, preprocess
from deepfeat.runtimes.startup import single_precision

#: Seed of the directions of the classes, the same for all networks: it makes their embeddings comparable.
SPACE_SEED = 0

#: Logits of unit embeddings are this many times their cosines: the least that lets the probability of a class come
#: near to 1 for two to a hundred classes (Wang et al. 2018, CosFace, arXiv:1801.09414, section 3.3, is a lower bound).
SCALE = 16.0


@single_precision()
def build_classifier(backbone: Backbone, n_classes: int, embedding_dim: int | None, dropout: float, seed: int) -> Any:
    """Put an embedding and class scores on a backbone.

    Without ``embedding_dim`` the embedding is the backbone's own output, pooled, and the classifier is learned.
    With it, a linear layer leads to embeddings of unit length, and the classifier is the fixed simplex of
    `class_directions`.

    Returns
    -------
    keras.Model
        From preprocessed images to the embedding and the probabilities, the layer ``scores``.

    Raises
    ------
    UsageError
        If the backbone has several layers or no pooling, or the embedding is too narrow for the classes.
    """
    from keras import layers

    if len(backbone.layers) > 1:
        raise UsageError("fine-tuning goes on from one layer: make the backbone with one, or none")
    base = backbone.build()
    taken = {layer.name for layer in base.layers}
    x = embedding = pool(layer_output(base, backbone.layers[0]), backbone.pooling)
    if len(x.shape) != 2:
        raise UsageError("fine-tuning needs a vector for each image: make the backbone with a pooling")
    x = layers.Dropout(dropout, seed=seed, name=_free("head_dropout", taken))(x)
    if embedding_dim is None:
        dense = layers.Dense(n_classes, kernel_initializer=_initializer(seed), name=_free("logits", taken))
        logits = dense(x)
    else:
        dense = layers.Dense(embedding_dim, kernel_initializer=_initializer(seed), name=_free("projection", taken))
        embedding = _to_unit_length(dense(x))
        fixed = layers.Dense(n_classes, use_bias=False, trainable=False, name=_free("class_directions", taken))
        logits = fixed(embedding)
        fixed.set_weights([SCALE * class_directions(n_classes, embedding_dim)])
    scores = layers.Softmax(dtype="float32", name=_free(SCORES, taken))(logits)
    return keras.Model(base.inputs[0], [embedding, scores], name=MODEL_NAME)


def _to_unit_length(x: Any) -> Any:
    """Scale vectors to unit length, in float32; the length of nothing has no gradient, so that a little is added."""
    x = ops.cast(x, "float32")
    return x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-6)


def class_directions(n_classes: int, width: int, seed: int | None = None) -> np.ndarray:
    """Directions of the classes in the embedding, each as far as can be from every other.

    They are the vertices of a regular simplex with unit length and cosines of -1 / (n_classes - 1), in a
    random position that ``seed`` decides. Networks whose last layer is fixed so classify as well [1]_ [2]_.

    Parameters
    ----------
    n_classes, width : int
    seed : int, optional
        `SPACE_SEED` if None.

    Returns
    -------
    ndarray of shape (width, n_classes), float32

    Raises
    ------
    UsageError
        If the width is below the number of classes.

    References
    ----------
    .. [1] Zhu et al. (2021), A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.
    .. [2] Pernici et al. (2019), Fix your features: stationary and maximally discriminative embeddings using
       regular polytope (fixed classifier) networks, arXiv:1902.10441.
    """
    if width < n_classes:
        msg = f"embedding_dim is {width} with {n_classes} classes: use at least as many as classes"
        raise UsageError(msg)
    normal = np.random.default_rng(SPACE_SEED if seed is None else seed).standard_normal((width, n_classes))
    orthogonal, triangle = np.linalg.qr(normal)
    # LAPACKs differ in the signs.
    orthogonal = orthogonal * np.sign(np.diag(triangle))
    centred = np.eye(n_classes) - 1 / n_classes
    return np.asarray((np.sqrt(n_classes / (n_classes - 1)) * orthogonal @ centred).astype(np.float32))


def space_name(classes: Sequence[str], width: int) -> str:
    """Name the embedding space of all networks with the same fixed class directions."""
    facts = repr(("simplex", 1, list(classes), width, SPACE_SEED, SCALE))
    return f"simplex:{hashlib.sha256(facts.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def build_trainer(backbone: Backbone, classifier: Any, precision: str) -> tuple[Any, Any]:
    """A model from uint8 images to class scores, and the network in it that learns.

    With bfloat16 the network is a copy whose layers compute in that and keep their weights in float32.
    """
    # Probabilities of bfloat16 would have three digits.
    network = as_mixed(classifier, kept={classifier.layers[-1].name}) if precision == "bfloat16" else classifier
    images = keras.Input(backbone.input_shape, dtype="uint8")
    _, scores = network(preprocess(images, backbone.network.preprocess))
    return keras.Model(images, scores), network


def set_trainable(network: Any, unfreeze: str | float, head_only: bool, frozen_statistics: bool) -> None:
    """Decide which layers learn.

    Parameters
    ----------
    network : keras.Model
        From `build_classifier`.
    unfreeze : str or float
        The first layer of the backbone that learns, or the part of its layers with weights, counted from the end.
    head_only : bool
        Whether nothing of the backbone learns.
    frozen_statistics : bool
        Whether BatchNorm keeps its scales and statistics, which it then applies as in inference.
    """
    head = _head_layers(network)
    body = [layer for layer in leaves(network) if layer not in head]
    first = len(body) if head_only else _first_learning(body, unfreeze)
    for number, layer in enumerate(body):
        frozen = frozen_statistics and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = number >= first and not frozen
    for layer in head:
        layer.trainable = not layer.name.startswith("class_directions")


def leaves(network: Any) -> Iterator[Any]:
    """All layers, those of networks inside the network too, in order."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            # Its own switch would turn its layers off.
            layer.trainable = True
            yield from leaves(layer)
        else:
            yield layer


def seed_layers(network: Any, seed: int) -> None:
    """Give every layer that draws random numbers a seed of its own."""
    states = [v for v in network.non_trainable_variables if v.path.endswith("seed_generator_state")]
    for number, state in enumerate(states):
        state.assign(np.random.SeedSequence([seed, number]).generate_state(2).astype(np.uint32))


def _first_learning(body: Sequence[Any], unfreeze: str | float) -> int:
    """Number of the first layer of the backbone that learns."""
    if isinstance(unfreeze, str):
        names = [layer.name for layer in body]
        if unfreeze not in names:
            weighted = [layer.name for layer in body if layer.weights]
            msg = f"the backbone has no layer {unfreeze!r} to unfreeze from: the last with weights are {weighted[-5:]}"
            raise BackboneError(msg)
        return names.index(unfreeze)
    normalisation = keras.layers.BatchNormalization
    weighted_layers = [n for n, x in enumerate(body) if x.weights and not isinstance(x, normalisation)]
    frozen = round((1 - unfreeze) * len(weighted_layers))
    return 0 if frozen == 0 else len(body) if frozen == len(weighted_layers) else weighted_layers[frozen]


def _head_layers(network: Any) -> list[Any]:
    """The layers that `build_classifier` added: those after the dropout on the backbone's output."""
    names = [layer.name for layer in network.layers]
    start = max(n for n, name in enumerate(names) if name.startswith("head_dropout"))
    return list(network.layers[start:])


def _initializer(seed: int) -> Any:
    return keras.initializers.GlorotUniform(seed=seed)


def _free(name: str, taken: set[str]) -> str:
    """A name that no layer of the backbone has."""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, 1000))) if n not in taken)
