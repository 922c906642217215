"""How one variable arises from its causes: flows, Gumbel-max, VAEs; and how any of them is trained."""

from mechanisms.guard import check_datasets

check_datasets()

from datasets.lazy import lazy_attributes  # noqa: E402  (the guard comes first)

_HOMES = {
    "Experts": "mechanisms.experts.model",
    "HVAE": "mechanisms.hvae", "VAE": "mechanisms.vae", "ImageConfig": "mechanisms.image_options",
    "ImageMechanism": "mechanisms.image_mechanism", "ImageNoise": "mechanisms.image_noise",
    "Predictors": "mechanisms.predictor", "load_predictors": "mechanisms.predictor",
    "TrainingConfig": "mechanisms.options", "fit": "mechanisms.training",
}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
