"""How one variable arises from its causes: flows, Gumbel-max, VAEs; and how any of them is trained."""

from mechanisms.guard import check_datasets

check_datasets()

from datasets.lazy import lazy_attributes  # noqa: E402  (the guard comes first)

_HOMES = {
    "Experts": "mechanisms.experts.model",
    "HVAE": "mechanisms.image.hvae", "VAE": "mechanisms.image.vae", "ImageConfig": "mechanisms.image.config",
    "ImageMechanism": "mechanisms.image.latent", "ImageNoise": "mechanisms.image.noise",
    "Predictors": "mechanisms.anticausal.model", "load_predictors": "mechanisms.anticausal.model",
    "TrainingConfig": "mechanisms.training.config", "fit": "mechanisms.training.loop",
}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
