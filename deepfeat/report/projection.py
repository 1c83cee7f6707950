"""Embeddings in two dimensions."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

METHODS = ("tsne", "pca")

#: Principal components that t-SNE starts from.
_N_COMPONENTS = 50


def project(features: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Place images on a plane, near to those with similar features.

    Parameters
    ----------
    features : ndarray of shape (n, dim)
    method : {"tsne", "pca"}
        t-SNE of the first 50 principal components of the standardised features, or the first two of these. Distances
        between far apart images mean nothing in the former.
    seed : int

    Returns
    -------
    ndarray of shape (n, 2)
        Between 0 and 1, in one scale for both directions.

    References
    ----------
    van der Maaten and Hinton (2008), Visualizing data using t-SNE, Journal of Machine Learning Research 9.
    """
    if len(features) < 2:
        return np.zeros((len(features), 2))
    scaled = StandardScaler().fit_transform(np.asarray(features, np.float32))
    n_components = min(_N_COMPONENTS if method == "tsne" else 2, *scaled.shape)
    places = PCA(n_components, random_state=seed).fit_transform(scaled)
    if method == "tsne" and len(places) > 3:
        perplexity = min(30.0, (len(places) - 1) / 3)
        init = "pca" if n_components > 1 else "random"
        # Threads wait for one another in every one of a thousand steps: beside other work they take longer than one.
        with threadpool_limits(1):
            places = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(places)
    places = np.pad(places, ((0, 0), (0, max(0, 2 - places.shape[1]))))[:, :2]
    if min(places.shape) > 1:
        # The page is wider than high; a turn changes no distance.
        places = PCA(2).fit_transform(places)
    places = places - places.min(axis=0)
    return np.asarray(places / (places.max() or 1.0))
