"""Features of images in memory, through the classes that `dmdistill evaluate` uses."""

from dmdistill.data.image_tensors import to_uint8
from dmdistill.metrics.extraction import FeatureExtraction
from dmdistill.metrics.frechet import accumulate_moments, frechet_distance


def feature_statistics(features, batches):
    """Mean and covariance of features(batch) over batches."""
    return accumulate_moments(features, batches).statistics()


def extract(extractor, batches, **options):
    """`FeatureStatistics` of batches of uint8 images."""
    extraction, first = FeatureExtraction(extractor, **options), 0
    for images in batches:
        extraction.add(images, range(first, first + len(images)))
        first += len(images)
    return extraction.statistics()


def frechet_to_real(classifier, batches):
    """Frechet distance of images, B C H W in [-1, 1], batch by batch, to the real images of a `ClassifierFeatures`."""
    moments = accumulate_moments(classifier, map(to_uint8, batches))
    return frechet_distance(moments.statistics(), classifier.reference)
